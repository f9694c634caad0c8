"""Readers by supervision of one file per image: Pascal VOC and LabelMe.

The library reads and checks every object. Its outlines are masks drawn to whole pixels, so polygons are kept as they
are written instead, and one image is read at a time, since masks of a whole data set do not fit into memory.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from piip.data.conversion.source import (
    LeftOut,
    Source,
    SourceImage,
    SourceObject,
    find_images,
    listed_splits,
    need,
    read_shape,
    run_lengths,
    short_name,
    split_of,
)

VOC_FOLDERS = ("jpegimages", "annotations", "images")


def read_voc(root: Path) -> Source:
    """Read Pascal VOC: one XML file per image, lists of splits in ImageSets/Main.

    Args:
        root: Folder of the data set.

    Raises:
        ValueError: supervision is missing, a file is damaged, or its size is not the image's.
    """
    voc = need("supervision.dataset.formats.pascal_voc", "The format voc")
    files, left_out, by_name = sorted(root.rglob("*.xml")), LeftOut(), _by_stem(root)
    roots = {file: _read_xml(file) for file in files}
    roots = {file: content for file, content in roots.items() if content.tag == "annotation"}
    names = {each.text or "" for content in roots.values() for each in content.findall("object/name")}
    classes = sorted(names)
    splits = listed_splits(root / "ImageSets" / "Main")

    def images() -> Iterator[SourceImage]:
        for file, content in roots.items():
            path = _image_beside(file, content.findtext("filename") or file.name, by_name)
            if path is None:
                left_out.add("annotation files without their image", str(file.relative_to(root)))
                continue
            shape = read_shape(path, left_out)
            if shape is not None:
                _check_size(file, (content.findtext("size/height"), content.findtext("size/width")), shape)
                objects = _voc_objects(voc, file, content, classes, shape)
                split = splits.get(file.stem, split_of(path, root))
                yield SourceImage(path, short_name(path, root, VOC_FOLDERS), split, shape, objects)
        for path in _unused(by_name, {file.stem for file in roots}):
            left_out.add("images without an annotation file", str(path.relative_to(root)))

    return Source(classes, images(), left_out)


def _voc_objects(
    voc: Any, file: Path, content: Any, classes: Sequence[str], shape: tuple[int, int]
) -> list[SourceObject]:
    try:
        read, _ = voc.detections_from_xml_obj(content, list(classes), shape[::-1])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    objects = []
    for number, each in enumerate(content.findall("object")):
        has_outline = read.mask is not None and each.find("polygon") is not None
        outline = run_lengths(read.mask[number]) if has_outline else None
        objects.append(SourceObject(classes[int(read.class_id[number])], tuple(read.xyxy[number].tolist()), outline))
    return objects


def read_labelme(root: Path) -> Source:
    """Read LabelMe: one JSON file per image, with rectangles and polygons; others are counted.

    Shapes of one label and group are one object, as in LabelMe's own conversion.

    Args:
        root: Folder of the data set.

    Raises:
        ValueError: supervision is missing, a shape is damaged, or its size is not the image's.
    """
    labelme = need("supervision.dataset.formats.labelme", "The format labelme")
    left_out, by_name = LeftOut(), _by_stem(root)
    contents = {file: _read_json(file) for file in sorted(root.rglob("*.json"))}
    contents = {
        file: content for file, content in contents.items() if isinstance(content, dict) and "shapes" in content
    }
    kinds = labelme.SUPPORTED_SHAPE_TYPES
    shapes = [shape for content in contents.values() for shape in content["shapes"]]
    classes = sorted({str(shape.get("label")) for shape in shapes if shape.get("shape_type") in kinds})

    def images() -> Iterator[SourceImage]:
        for file, content in contents.items():
            path = _image_beside(file, str(content.get("imagePath") or file.name), by_name)
            if path is None:
                left_out.add("annotation files without their image", str(file.relative_to(root)))
                continue
            shape = read_shape(path, left_out)
            if shape is not None:
                _check_size(file, (content.get("imageHeight"), content.get("imageWidth")), shape)
                objects = _labelme_objects(labelme, file, content["shapes"], shape, left_out)
                yield SourceImage(path, short_name(path, root, ()), split_of(path, root), shape, objects)
        for path in _unused(by_name, {file.stem for file in contents}):
            left_out.add("images without an annotation file", str(path.relative_to(root)))

    return Source(classes, images(), left_out)


def _labelme_objects(
    labelme: Any, file: Path, shapes: Sequence[Mapping[str, Any]], shape: tuple[int, int], left_out: LeftOut
) -> list[SourceObject]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for number, each in enumerate(shapes):
        kind = each.get("shape_type")
        if kind not in labelme.SUPPORTED_SHAPE_TYPES:
            left_out.add(f"shapes of the type {kind}", file.name)
            continue
        is_alone = each.get("group_id") is None
        groups.setdefault(number if is_alone else (each.get("label"), each["group_id"]), []).append(each)
    objects = []
    for members in groups.values():
        label = str(members[0].get("label"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other shapes were counted
                read = labelme.labelme_shapes_to_detections(members, {label: 0}, shape[::-1], with_masks=False)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file}: {error}") from error
        outline = [_polygon(each) for each in members] if any(len(each["points"]) > 2 for each in members) else None
        objects.append(SourceObject(label, tuple(read.xyxy[0].tolist()), outline))
    return objects


def _polygon(shape: Mapping[str, Any]) -> list[float]:
    points = shape["points"]
    if shape["shape_type"] == "rectangle":
        xs, ys = ([float(point[axis]) for point in points] for axis in (0, 1))
        points = [(min(xs), min(ys)), (max(xs), min(ys)), (max(xs), max(ys)), (min(xs), max(ys))]
    return [float(value) for point in points for value in point]


def _read_xml(file: Path) -> Any:
    parse = need("defusedxml.ElementTree", "An XML file").parse
    try:
        return parse(file).getroot()
    except (SyntaxError, ValueError) as error:  # also what defusedxml forbids
        raise ValueError(f"{file} is not an XML file: {error}.") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a JSON file: {error}.") from error


def _by_stem(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in find_images(root):
        found.setdefault(path.stem, []).append(path)
    return found


def _image_beside(file: Path, name: str, by_stem: Mapping[str, list[Path]]) -> Path | None:
    """Return the image that an annotation file names: beside it, or the nearest of that name elsewhere."""
    name = name.replace("\\", "/").rpartition("/")[2]
    beside = file.parent / name
    if beside.suffix != file.suffix and beside.is_file():
        return beside
    options = by_stem.get(Path(name).stem, []) or by_stem.get(file.stem, [])

    def common(path: Path) -> int:
        return sum(first == second for first, second in zip(path.parts, file.parts, strict=False))

    return max(options, key=common, default=None)


def _unused(by_stem: Mapping[str, list[Path]], stems: set[str]) -> list[Path]:
    return [path for stem, paths in by_stem.items() for path in paths if stem not in stems]


def _check_size(file: Path, stated: tuple[Any, Any], shape: tuple[int, int]) -> None:
    sides = tuple(int(side or 0) for side in stated)
    if all(sides) and sides != shape:  # some tools write 0
        raise ValueError(
            f"{file} says its image is {sides[0]}x{sides[1]} (height x width), but it is {shape[0]}x{shape[1]}: "
            "annotate this image again, or save it in the size that was annotated."
        )
