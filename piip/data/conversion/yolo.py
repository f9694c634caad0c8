"""Reader of YOLO txt files by supervision.

The library reads and checks every line. Its outlines are masks drawn to whole pixels, so polygons are kept as they are
written instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from piip.data.conversion.source import (
    SPLITS,
    LeftOut,
    Source,
    SourceImage,
    SourceObject,
    find_images,
    need,
    read_shape,
    short_name,
    split_of,
)

YOLO_NAMES = ("classes.txt", "obj.names", "labels.txt")
YOLO_FOLDERS = ("images", "obj_train_data")


def read_yolo(root: Path) -> Source:
    """Read YOLO txt files: boxes or polygons, with or without data.yaml.

    The labels of images/a/b.jpg are in labels/a/b.txt, or beside the image.

    Args:
        root: Folder of the data set.

    Raises:
        ValueError: supervision is missing, there are no labels, or a line is invalid.
    """
    yolo = need("supervision.dataset.formats.yolo", "The format yolo")
    config = _yolo_config(root)
    labels = {path: _yolo_labels(path, root) for path in find_images(root)}
    labelled = {file for file in labels.values() if file.is_file()}
    if not labelled:
        raise ValueError(f"{root} has no YOLO labels, expected images/NAME.jpg and labels/NAME.txt, or both together.")
    classes, notes = _yolo_classes(root, config, labelled)
    left_out = LeftOut()
    other = {*root.rglob("*.txt")} - labelled
    lists = {"readme", *SPLITS, *(Path(name).stem for name in YOLO_NAMES)}
    for file in sorted(other):
        if file.stem.lower() not in lists and not file.stem.lower().startswith("readme"):
            left_out.add("text files without an image", str(file.relative_to(root)))
    splits = _yolo_splits(root, config)

    def images() -> Iterator[SourceImage]:
        for path, file in labels.items():
            shape = read_shape(path, left_out)
            if shape is not None:
                objects = _yolo_objects(yolo, file, shape, classes, left_out, has_points="kpt_shape" in config)
                split = next((name for known, name in splits if known in (path, *path.parents)), split_of(path, root))
                yield SourceImage(path, short_name(path, root, YOLO_FOLDERS), split, shape, objects)

    return Source(classes, images(), left_out, notes)


def _yolo_config(root: Path) -> Mapping[str, Any]:
    found = [path for pattern in ("*.yaml", "*.yml") for path in sorted(root.glob(pattern))]
    for path in found:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a YAML file: {error}.") from error
        if isinstance(content, dict) and "names" in content:
            _check_names(content["names"], path)
            return content
    return {}


def _check_names(names: Any, path: Path) -> None:
    is_numbered = isinstance(names, dict) and all(str(number).isdecimal() for number in names)
    if not names or not (is_numbered or isinstance(names, list)):
        raise ValueError(f"{path} has the names {names!r}, expected a list, or names by class number.")


def _yolo_labels(image: Path, root: Path) -> Path:
    """Return the label file of an image, whether it exists or not."""
    parts = list(image.relative_to(root).parts)
    folders = [place for place, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    beside = image.with_suffix(".txt")
    return beside if beside.is_file() else root.joinpath(*parts).with_suffix(".txt")


def _yolo_classes(root: Path, config: Mapping[str, Any], files: set[Path]) -> tuple[list[str], list[str]]:
    names = config.get("names")
    if isinstance(names, dict):
        numbers = {int(number): str(name) for number, name in names.items()}
        return [numbers.get(number, f"class_{number}") for number in range(max(numbers) + 1)], []
    if names:
        return [str(name) for name in names], []
    for name in YOLO_NAMES:
        for path in sorted(root.rglob(name)):
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()], []
    used = [float(line.split()[0]) for file in files for line in file.read_text("utf-8").splitlines() if line.strip()]
    last = int(max(used, default=0))
    return [f"class_{number}" for number in range(last + 1)], [
        "there is no data.yaml or classes.txt, so classes are named class_0, class_1, ..."
    ]


def _yolo_splits(root: Path, config: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return the folders and files of the splits in data.yaml."""
    found: list[tuple[Path, str]] = []
    bases = [root, root / str(config.get("path", ""))]
    for key in (key for key in config if key in SPLITS):
        places = config[key] if isinstance(config[key], list) else [config[key]]
        for place in (str(place) for place in places if place):
            options = [base / word for base in bases for word in (place, place.removeprefix("../"))]
            path = next((option for option in options if option.exists()), None)
            if path is not None and path.is_file():  # a list of images
                lines = path.read_text(encoding="utf-8").split()
                found += [(base / line, SPLITS[key]) for base in bases for line in lines]
            elif path is not None and path.resolve() != root.resolve():
                found.append((path, SPLITS[key]))
    return found


def _yolo_objects(
    yolo: Any, file: Path, shape: tuple[int, int], classes: Sequence[str], left_out: LeftOut, *, has_points: bool
) -> list[SourceObject]:
    objects = []
    lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if has_points and len(words) > 5:
            left_out.add("lists of keypoints", f"{file.name} line {number}")
            words = words[:5]
        place = f"{file} line {number}"
        try:
            read = yolo.yolo_annotations_to_detections([" ".join(words)], shape[::-1], with_masks=False)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        index = int(read.class_id[0])
        if not 0 <= index < len(classes):
            raise ValueError(f"{place} has the class {index}, expected 0 to {len(classes) - 1} ({len(classes)} names).")
        outline = None
        if len(words) > 6:
            pairs = [float(word) for word in words[1 : len(words) - (len(words) + 1) % 2]]
            outline = [[value * shape[1 - place % 2] for place, value in enumerate(pairs)]]
        objects.append(SourceObject(classes[index], tuple(read.xyxy[0].tolist()), outline))
    return objects
