"""Reading COCO files as people have them: every entry checked, and brought to one form.

Files of labelling tools and spreadsheets number annotations from 0 or not at all, write flags as text, list categories
without objects, and so on. What has one meaning is read with it; what is left out or read differently is noted; the
rest is a problem. All problems of a file are reported at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from piip.data.annotations import check_outline, is_number, outline_area
from piip.data.coco_bulk import FARTHEST_PIXEL, OVERLAP, BoxesTogether, agrees, find_regular
from piip.data.findings import Findings

SECTIONS = ("images", "annotations", "categories")
CROWD_WORDS = {"0": 0, "1": 1, "": 0, "false": 0, "true": 1, "no": 0, "yes": 1}
LEGACY_ENCODING = "cp1252"  # what spreadsheets and editors on Windows write
LARGEST = 2**62  # of ids
LONGEST = 1_000_000  # side of an image in pixels
Content = dict[str, Any]


def read_coco(path: Path) -> Content:
    """Read a COCO file, and log what is left out or read differently.

    Args:
        path: The JSON file.

    Returns:
        "images", "categories" (sorted by id) and "annotations", whose "id" counts from 1 ("own_id" is that of the
        file), whose "iscrowd" is 0 or 1, whose "area" is a number and whose "segmentation" is None or an outline
        without a problem. Sizes of images that the file lacks are None.

    Raises:
        ValueError: The file is missing or not JSON, lacks a section, or has invalid entries.
    """
    content, findings = check_coco(path)
    findings.raise_problems()
    findings.log()
    return content


def check_coco(path: Path) -> tuple[Content, Findings]:
    """Read a COCO file and return what is usable, and what was found.

    Images with "has_outside" have annotations that do not fit their size.

    Args:
        path: The JSON file.

    Raises:
        ValueError: The file is missing or not JSON, or lacks a section.
    """
    findings = Findings(path)
    content = _parsed(path, findings)
    images = _images(content["images"], findings)
    annotations = _annotations(content["annotations"], images, _categories(content["categories"], findings), findings)
    _note_scores(content["annotations"], findings)
    categories = _used_categories(content["categories"], annotations, findings)
    return {"images": list(images.values()), "categories": categories, "annotations": annotations}, findings


def _parsed(path: Path, findings: Findings) -> Content:
    """Return the file's sections, whose entries are still as in the file."""
    if not path.is_file():
        raise ValueError(f"There is no annotation file {str(path)!r}, expected a COCO JSON file.")
    content = _json(path.read_bytes(), path, findings)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected the sections {', '.join(SECTIONS)} of a COCO file."
        )
    for section in SECTIONS:
        if not isinstance(content.get(section), list):
            raise ValueError(f"{path} has no list {section!r}, expected images, annotations and categories.")
    return content


def _note_scores(rows: Sequence[Any], findings: Findings) -> None:
    """Say that objects are predictions, as after predicting and correcting in a labelling tool."""
    scores = [row["score"] for row in rows if isinstance(row, dict) and is_number(row.get("score"))]
    if scores:
        findings.say(
            f"{len(scores)} annotations have scores, as predictions do, {sum(score < 0.5 for score in scores)} of them "
            "below 0.5; each is read as an object: remove those that are none."
        )


def _json(data: bytes, path: Path, findings: Findings) -> Any:
    """Return the value of a JSON file in any of the usual encodings."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # the standard library's reader is slower, but takes other encodings and NaN, and says what is wrong
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        text = data.decode(LEGACY_ENCODING, errors="replace")
        findings.say(f"The file is not UTF-8; it is read as {LEGACY_ENCODING}.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also integers of thousands of digits
        raise ValueError(f"{path} is not a JSON file: {error}.") from error


def _integer(value: Any) -> int | None:
    """Return an integer that a tool has written as a number or as digits, None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value.strip()):
        return int(value)
    return int(value) if is_number(value) and value == int(value) and abs(value) < LARGEST else None


def _entries(rows: Sequence[Any], section: str, findings: Findings, needed: Sequence[str]) -> list[tuple[int, Any]]:
    """Return the entries with their place that are mappings with the fields needed."""
    usable = []
    for place, row in enumerate(rows):
        missing = [name for name in needed if not isinstance(row, dict) or name not in row]
        if missing:
            findings.problem(f"{section}[{place}] has no field {missing[0]!r}")
        else:
            usable.append((place, row))
    return usable


def _images(rows: Sequence[Any], findings: Findings) -> dict[int, Content]:
    """Return the images by id."""
    images: dict[int, Content] = {}
    for place, row in _entries(rows, "images", findings, ("id", "file_name")):
        image_id, name = _integer(row["id"]), row["file_name"]
        if image_id is None:
            findings.problem(f"images[{place}] has the id {row['id']!r}, expected an integer")
        elif not isinstance(name, str) or not name.strip():
            findings.problem(f"images[{place}] (id {image_id}) has the file_name {name!r}, expected text")
        elif image_id in images and images[image_id]["file_name"] != name:
            findings.problem(f"the id {image_id} occurs more than once in images")
        elif image_id in images:
            findings.note("images listed twice count once", name)
        else:
            where = f"images[{place}] (id {image_id}, {name})"
            sides = {side: _side(row.get(side), f"{where} has the {side}", findings) for side in ("height", "width")}
            images[image_id] = {"id": image_id, "file_name": name, **sides}
    names = Counter(image["file_name"] for image in images.values())
    for name in (name for name, count in names.items() if count > 1):
        findings.note("files of several images have the objects of each", name)
    return images


def _side(value: Any, where: str, findings: Findings) -> int | None:
    if value is None:
        return None
    if not is_number(value) or not 1 <= value <= LONGEST or value != int(value):
        findings.problem(f"{where} {value!r:.40}, expected an integer of at least 1")
        return None
    return int(value)


def _categories(rows: Sequence[Any], findings: Findings) -> dict[int, str]:
    """Return the names of categories by id, and check them."""
    names: dict[int, str] = {}
    for place, row in _entries(rows, "categories", findings, ("id", "name")):
        category, name = _integer(row["id"]), row["name"]
        if category is None:
            findings.problem(f"categories[{place}] has the id {row['id']!r}, expected an integer")
        elif not isinstance(name, (str, int)) or isinstance(name, bool) or not str(name).strip():
            findings.problem(f"categories[{place}] (id {category}) has the name {name!r}, expected text")
        elif category in names:
            findings.problem(f"the id {category} occurs more than once in categories")
        else:
            names[category] = str(name)
    return names


def _used_categories(rows: Sequence[Any], annotations: Sequence[Content], findings: Findings) -> list[Content]:
    """Return the categories by id, without those that only group others or repeat a name."""
    valid = [row for row in rows if isinstance(row, dict) and _integer(row.get("id")) is not None and "name" in row]
    named: list[Content] = [{"id": _integer(row["id"]), "name": str(row["name"])} for row in valid]
    named.sort(key=lambda row: row["id"])
    objects = Counter(row["category_id"] for row in annotations)
    count = Counter(row["name"] for row in named)
    groups = {str(row.get("supercategory")) for row in valid if str(row.get("supercategory")) != str(row["name"])}
    kept: list[Content] = []
    for row in named:
        name, label = row["name"], f"{row['name']} (id {row['id']})"
        if not objects[row["id"]] and count[name] > 1:
            findings.note("categories without objects have the same name as another and are left out", label)
            count[name] -= 1
        elif not objects[row["id"]] and name in groups:
            findings.note("categories only group others (supercategory), have no objects and are left out", label)
        elif any(name == other["name"] for other in kept):
            findings.problem(f"several categories are named {name!r}: rename all but one, or give their objects one id")
        else:
            kept.append(row)
    return kept


def _annotations(
    rows: Sequence[Any], images: Mapping[int, Content], categories: Collection[int], findings: Findings
) -> list[Content]:
    """Return the annotations in one form, with ids that count from 1."""
    regular, boxes = find_regular(rows, images, categories), BoxesTogether(findings)
    boxes.add_all(regular, rows, images)
    kept: list[Content] = []
    seen: set[int] = set()
    for place, (row, is_regular) in enumerate(zip(rows, regular.is_regular.tolist(), strict=True)):
        made = row if is_regular else _checked(row, place, images, categories, seen, findings)
        if made is None:
            continue
        if not is_regular:
            boxes.add(made["bbox"], images[made["image_id"]])
        kept.append(
            {
                "id": len(kept) + 1,
                "own_id": row.get("id"),
                "image_id": made["image_id"],
                "category_id": made["category_id"],
                "bbox": made["bbox"],
                "iscrowd": made["iscrowd"],
                "area": made["area"],
                "segmentation": made.get("segmentation") or None,
            }
        )
    boxes.judge()
    return kept


def _checked(
    row: Any,
    place: int,
    images: Mapping[int, Content],
    categories: Collection[int],
    seen: set[int],
    findings: Findings,
) -> Content | None:
    """Return an annotation in the usual form, None if it is left out or has a problem."""
    if type(row) is not dict:
        findings.problem(f"annotations[{place}] is {row!r:.40}, expected a mapping")
        return None
    own, image_id, category = row.get("id"), _integer(row.get("image_id")), _integer(row.get("category_id"))
    if image_id is None or image_id not in images or category not in categories:
        _note_references(row, place, images, categories, findings)
        return None
    if type(own) is int and own not in seen:
        seen.add(own)
    elif own is not None:
        findings.note("annotations whose ids are not different integers are numbered anew", own)
    made = _annotation(row, place, images[image_id], findings)
    return None if made is None else {**made, "image_id": image_id, "category_id": category}


def _where(row: Content, place: int, image: Content | None) -> str:
    name = f", on {image['file_name']}" if image else ""
    return f"annotations[{place}] (id {row.get('id')}{name})"


def _note_references(
    row: Content, place: int, images: Mapping[int, Content], categories: Collection[int], findings: Findings
) -> None:
    """Add what is wrong with the ids of image and category."""
    for field, known in (("image_id", images), ("category_id", categories)):
        value = _integer(row.get(field))
        if field not in row:
            findings.problem(f"annotations[{place}] has no field {field!r}")
        elif value is None:
            findings.problem(f"{_where(row, place, None)} has the {field} {row[field]!r:.40}, expected an integer")
        elif value not in known:
            findings.problem(f"{_where(row, place, None)} has an unknown {field} {row[field]!r}")


def _annotation(row: Content, place: int, image: Content, findings: Findings) -> Content | None:
    """Return the fields of an annotation apart from ids, None if it is left out or has a problem."""
    outline, bounds, problem, is_degenerate = check_outline(row.get("segmentation"), image["height"], image["width"])
    crowd = row.get("iscrowd", 0)
    if type(crowd) is not int or not 0 <= crowd <= 1:
        crowd = _crowd(crowd)
    box = row.get("bbox")
    if not box and bounds is not None:
        box = [bounds[0], bounds[1], bounds[2] - bounds[0], bounds[3] - bounds[1]]
        findings.note("annotations without a bbox get the bounding box of their outline", row.get("id"))
    if isinstance(outline, dict) and outline["size"] != [image["height"], image["width"]]:
        image["has_outside"] = True
    problem = f"has a segmentation that {problem}" if problem else _field_problem(row, crowd, box)
    if problem:
        where = _where(row, place, image) if "bbox" in row else f"annotations[{place}]"
        findings.problem(f"{where} {problem}")
        return None
    if is_degenerate:
        what = "annotations with polygons of fewer than three different points are left out"
        findings.note(what, f"id {row.get('id')}")
        return None
    if bounds is not None and not agrees(box, bounds):  # type: ignore[arg-type]  # checked above
        findings.note(f"boxes overlap the bounding box of their outline by less than {OVERLAP}", f"id {row.get('id')}")
    area = row.get("area")
    if not is_number(area):
        area = outline_area(outline, box)  # type: ignore[arg-type]
    return {"bbox": box, "iscrowd": crowd, "area": area, "segmentation": outline}


def _crowd(value: Any) -> int | None:
    """Return a flag that is not the integer 0 or 1, None if it means nothing."""
    if value is None:
        return 0
    if isinstance(value, (bool, float)):
        return int(value) if value in (0, 1) else None
    return CROWD_WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def _field_problem(row: Content, crowd: int | None, box: Any) -> str:
    """Return what is wrong with box or flag, or ""."""
    if crowd is None:
        return f"has the iscrowd {row['iscrowd']!r:.40}, expected 0 or 1"
    if type(box) is list and len(box) == 4 and all(map(is_number, box)) and max(map(abs, box)) < FARTHEST_PIXEL:
        return ""
    if "bbox" not in row:
        return "has no field 'bbox'"
    return f"has the bbox {row['bbox']!r:.60}, expected x, y, width and height in pixels"
