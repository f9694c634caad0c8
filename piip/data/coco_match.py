"""A COCO file against the images and classes that it is used with: what fits, and what is only written differently."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from piip.data.coco_file import Content
from piip.data.findings import Findings, shorten
from piip.data.image_reading import stored_shape
from piip.data.locate import locate_images
from piip.data.orientation import upright_shape

MARGIN = 1.0  # pixels that a box may reach beyond its image


def match_classes(
    content: Content, expected: Sequence[str] | None, findings: Findings
) -> tuple[list[str], dict[int, int]]:
    """Return the class names, and the class index of every category id of the file.

    Args:
        content: The file's content.
        expected: Class names in the order of their indices; None uses those of the file.
        findings: Gets problems and notes about categories that do not match.
    """
    named = {category["id"]: category["name"] for category in content["categories"]}
    classes = list(named.values()) if expected is None else list(expected)
    index = {name: place for place, name in enumerate(classes)}
    objects = Counter(row["category_id"] for row in content["annotations"])
    for category, name in named.items():
        if name in index:
            continue
        if objects[category]:
            close = difflib.get_close_matches(name, classes, n=1, cutoff=0.6)
            findings.problem(
                f"{objects[category]} objects have the class {name!r}, expected one of {shorten(classes)}"
                f"{f' (perhaps {close[0]!r})' if close else ''}: rename the category, or remove it with its objects"
            )
        else:
            findings.note("categories without objects are not known to the model and are left out", name)
    for name in [name for name in classes if name not in named.values()]:
        findings.note("classes are not in the file; nothing is measured for them", name)
    return classes, {category: index[name] for category, name in named.items() if name in index}


def ids_of_classes(class_of: Mapping[int, int], count: int) -> list[int]:
    """Return the category id of every class; classes that the file lacks get ids that it does not use.

    Args:
        class_of: Class index of every category id.
        count: Number of classes.
    """
    ids = {index: category for category, index in class_of.items()}
    unused = max(class_of, default=0)
    for index in range(count):
        if index not in ids:
            unused += 1
            ids[index] = unused
    return [ids[index] for index in range(count)]


def present_images(
    images: Sequence[Content], folder: Path, on_error: str, findings: Findings
) -> list[tuple[Path, Content]]:
    """Return the images with their files.

    Raises:
        ValueError: Files are missing and `on_error` is "stop".
    """
    paths = locate_images(folder, [image["file_name"] for image in images], findings)
    missing = [str(folder / image["file_name"]) for path, image in zip(paths, images, strict=True) if path is None]
    if missing and on_error == "stop":
        where = "" if folder.is_dir() else f" There is no folder {folder}."
        raise ValueError(
            f"{len(missing)} of {len(images)} images in {findings.source} are missing: {shorten(missing)}.{where} "
            "To go on without them use --data.on_error skip (train) or --on-error skip."
        )
    for name in missing:
        findings.note("images are missing and are left out", name)
    return [(path, image) for path, image in zip(paths, images, strict=True) if path is not None]


def correct_sizes(
    entries: Sequence[tuple[Path, Content]], by_image: Mapping[int, list[Content]], findings: Findings
) -> None:
    """Fill in sizes that the file lacks, and swap those that it has the wrong way round, from the image files.

    Args:
        entries: Images with their files, changed in place.
        by_image: Annotations by image id.
        findings: Gets notes about what is changed, and problems of outlines that fit no size.
    """
    for path, image in entries:
        if image["height"] is None or image["width"] is None:
            image["height"], image["width"] = stored_shape(path)
            image["has_outside"] = True  # unknown until now: look at every box
            findings.note("images have no size in the file; it is read from the image", image["file_name"])
            continue
        if "has_outside" in image:
            _check_sides(path, image, by_image.get(image["id"], []), findings)


def _check_sides(path: Path, image: Content, rows: Sequence[Content], findings: Findings) -> None:
    """Swap height and width of an image in the file if annotations and the image itself say so."""
    swapped = {"height": image["width"], "width": image["height"]}
    sizes = [row["segmentation"]["size"] for row in rows if isinstance(row["segmentation"], dict)]
    fits_only_swapped = (
        any(not is_inside(row["bbox"], image) and is_inside(row["bbox"], swapped) for row in rows)
        or [swapped["height"], swapped["width"]] in sizes
    )
    actual = stored_shape(path)
    if fits_only_swapped and actual == (swapped["height"], swapped["width"]) and not is_quarter_turned(path):
        image.update(swapped)
        findings.note("images have height and width swapped in the file", image["file_name"])
    for size in sizes:
        if size != [image["height"], image["width"]]:
            findings.problem(
                f"{image['file_name']} has a segmentation of the size {size}, the image "
                f"{[image['height'], image['width']]} (height, width)"
            )


def is_inside(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    """Return whether a box (x, y, width, height) ends inside an image with "height" and "width"."""
    return bool(box[0] + box[2] <= image["width"] + MARGIN and box[1] + box[3] <= image["height"] + MARGIN)


def is_quarter_turned(path: Path) -> bool:
    """Return whether the EXIF orientation of an image exchanges its sides."""
    with Image.open(path) as image:
        return upright_shape(image) != (image.height, image.width)
