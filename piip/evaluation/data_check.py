"""A look at labelled data before training: counts, sizes, what would be left out, what looks odd, a few images."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.coco import CocoInstances
from piip.data.findings import NAMES_SHOWN, shorten
from piip.data.formats import DATA_FORMATS, Images
from piip.data.image_check import inspect_split
from piip.data.image_folder import ImageFolder
from piip.data.image_reading import stored_shape
from piip.data.semantic_masks import SemanticMasks
from piip.evaluation.report.drawing import draw_map, draw_objects
from piip.evaluation.report.sheet import SheetRow, write_sheet
from piip.recipe import load_recipe
from piip.structures import IGNORE_INDEX, Target

FEW = 10  # objects or images of a class below which it is hard to learn
MINORITY = 0.01  # fraction of the most frequent class below which a class is rare
SHEET_NAME = "sheet.png"
SHEET_ROWS = 6
IMAGE_FOLDERS = ("images", "imgs", ".")
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


@dataclass(frozen=True)
class SplitCheck:
    """What is known about a split.

    Args:
        path: Its folder or file.
        images: Number of usable images.
        unit: What `classes` counts: "images", "objects" or "pixels".
        classes: Number of each class.
        sizes: Smallest, median and largest (H, W) by area.
        problems: What must be fixed before training.
        left_out: What training would leave out or read differently.
        suspicious: What is allowed, but looks odd.
    """

    path: str
    images: int = 0
    unit: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    left_out: Sequence[str] = ()
    suspicious: Sequence[str] = ()


@dataclass(frozen=True)
class DataCheck:
    """What is known about several splits.

    Args:
        splits: The splits.
        suspicious: What looks odd between them.
        sheet: File of the sheet of annotated images, None without usable images.
    """

    splits: Sequence[SplitCheck]
    suspicious: Sequence[str]
    sheet: str | None

    @property
    def is_usable(self) -> bool:
        """Whether nothing must be fixed."""
        return not any(split.problems for split in self.splits)

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON values."""
        return {**asdict(self), "usable": self.is_usable}


def check_data(
    paths: Sequence[str | Path],
    *,
    images: str | Path | None = None,
    num_classes: int | None = None,
    workers: int = 2,
    out: str | Path | None = None,
) -> DataCheck:
    """Check data sets as training would.

    Args:
        paths: Recipes, COCO files, image folders with a folder per class, or folders of semantic masks.
        images: Folder of the images of COCO files and semantic masks; None looks for it near the file.
        num_classes: Number of classes of semantic masks without a list of names.
        workers: Files read at the same time.
        out: Folder for a sheet of annotated images; None draws none.

    Raises:
        ValueError: A path does not exist, or is none of these.
    """
    checks: list[SplitCheck] = []
    opened: list[Images] = []
    for path in paths:
        for name, open_split in _splits(Path(path), None if images is None else Path(images), num_classes):
            try:
                split = open_split()
            except ValueError as error:
                checks.append(SplitCheck(name, problems=[str(error)]))
                continue
            opened += [split] if split is not None else []
            checks += [_check(split, name, workers)] if split is not None else []
    sheet = None
    if out is not None and opened:
        rows = [row for split in opened for row in _rows(split, max(1, SHEET_ROWS // len(opened)))]
        sheet = Path(out) / SHEET_NAME
        write_sheet(sheet, rows, heads=("image", "annotations"))
    return DataCheck(checks, _shared_images(opened), None if sheet is None else str(sheet))


OpenSplit = Callable[[], "Images | None"]


def _splits(path: Path, images: Path | None, num_classes: int | None) -> list[tuple[str, OpenSplit]]:
    """Return the splits that a path stands for, by name."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return _of_recipe(path)
    if path.suffix.lower() == ".json":
        folder = images or _near(path)
        return [(str(path), lambda: CocoInstances(path, folder, train=True, keep_empty=True))]
    if not path.is_dir():
        raise ValueError(f"There is no {str(path)!r}, expected a recipe, a COCO file or a folder.")
    if images is not None:
        return [(str(path), functools.partial(_open_masks, path, images, num_classes))]
    return [(str(folder), functools.partial(ImageFolder, folder)) for folder in _image_folders(path)]


def _image_folders(path: Path) -> list[Path]:
    """Return the folders with a folder per class: the splits in a folder, if it has nothing else, or itself."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    is_parent = bool(folders) and all(folder.name.lower() in SPLIT_NAMES for folder in folders)
    return folders if is_parent else [path]


def _open_masks(path: Path, images: Path, num_classes: int | None) -> SemanticMasks:
    return SemanticMasks(path, images, num_classes=num_classes, train=True, reduce_zero_label=False)


def _of_recipe(path: Path) -> list[tuple[str, OpenSplit]]:
    recipe = load_recipe(path)
    data, kind = recipe.data, DATA_FORMATS[recipe.data.kind]
    opened: dict[int, Images | None] = {}

    def open_split(number: int) -> Images | None:
        if not opened:
            opened.update(enumerate(kind.open(data, recipe.run.seed, recipe.known_classes)))
        return opened.get(number)

    names = [f"{path}: {data.train}", f"{path}: {data.val or 'validation'}"]
    return [(names[0], lambda: open_split(0)), (names[1], lambda: open_split(1))]


def _near(path: Path) -> Path:
    """Return the folder that most likely has the images of a COCO file."""
    stem = path.stem.removeprefix("instances_")
    candidates = [base / name for base in (path.parent, path.parent.parent) for name in (stem, *IMAGE_FOLDERS)]
    return next((folder for folder in candidates if folder.is_dir() and folder != path.parent), path.parent)


def _check(split: Images, name: str, workers: int) -> SplitCheck:
    broken, findings = inspect_split(split, workers=workers)
    counts = split.class_counts()
    shapes = sorted((stored_shape(path) for path, _ in split.samples), key=lambda shape: shape[0] * shape[1])
    places = {"smallest": 0, "median": len(shapes) // 2, "largest": -1}
    return SplitCheck(
        path=name,
        images=len(split) - len(broken),
        unit=split.counted,
        classes=counts,
        sizes={place: shapes[index] for place, index in places.items()} if shapes else {},
        problems=[*findings.problems, *list(broken.values())],
        left_out=[*split.findings.notes(), *findings.notes()],
        suspicious=_rare_classes(counts, split.counted),
    )


def _rare_classes(counts: Mapping[str, int], unit: str) -> list[str]:
    found = []
    absent = [name for name, count in counts.items() if not count]
    if absent:
        found.append(f"classes without {unit}: {shorten(absent)}")
    limit = FEW if unit != "pixels" else MINORITY * max(counts.values(), default=0)
    rare = [f"{name} ({count})" for name, count in counts.items() if 0 < count < limit]
    if rare:
        found.append(f"classes with few {unit}: {shorten(rare)}")
    return found


def _shared_images(splits: Sequence[Images]) -> list[str]:
    """Return images that stand in several splits, or twice in one, byte by byte."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for path in {path for split in splits for path, _ in split.samples}:
        by_size[path.stat().st_size].append(path)
    by_content: defaultdict[str, list[Path]] = defaultdict(list)
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else []:
            by_content[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
    equal = [sorted(paths) for paths in by_content.values() if len(paths) > 1]
    listed = [{path for path, _ in split.samples} for split in splits]
    twice = [str(path) for path in sorted(set().union(*listed)) if sum(path in paths for paths in listed) > 1]
    found = [f"images in several splits: {shorten(twice)}"] if twice else []
    if equal:
        pairs = [f"{paths[0]} = {paths[1]}" for paths in sorted(equal)]
        found.append(f"images with equal contents ({len(pairs)}): {shorten(pairs)}")
    return found


def _rows(split: Images, count: int) -> list[SheetRow]:
    """Return a few images of a split beside their annotations."""
    rows: list[SheetRow] = []
    for index in np.linspace(0, len(split) - 1, min(len(split), 3 * count)).round().astype(int).tolist():
        if len(rows) == count:
            break
        try:
            image = split.read_image(index)
            target = split.read_target(index, (image.height, image.width))
        except ValueError:
            continue  # among the problems already
        caption = split.samples[index][0].name
        if "class" in target:
            rows.append(SheetRow(f"{caption}: {target['class']}", [image]))
        else:
            rows.append(SheetRow(caption, [image, _drawn(image, target)]))
    return rows


def _drawn(image: Image.Image, target: Target) -> Image.Image:
    if "boxes" in target:
        masks = target["masks"].numpy() if "masks" in target else None
        return draw_objects(image, target["boxes"].tolist(), target["labels"].tolist(), masks)
    labels = target["labels"].numpy().astype(np.uint8)
    return draw_map(image, labels, labels == IGNORE_INDEX)


def format_check(check: DataCheck) -> str:
    """Return a check as text."""
    lines: list[str] = []
    for split in check.splits:
        lines.append(f"{split.path}: {split.images} images")
        if split.sizes:
            lines.append("  sizes: " + ", ".join(f"{name} {h}x{w}" for name, (h, w) in split.sizes.items()))
        if split.classes:
            shown = [f"{name} {count}" for name, count in split.classes.items()]
            lines.append(f"  {split.unit} by class: {shorten(shown)}")
        for title, texts in (
            ("must be fixed", split.problems),
            ("left out or read differently", split.left_out),
            ("suspicious", split.suspicious),
        ):
            lines += [f"  {title}: {text}" for text in texts[:NAMES_SHOWN]]
            lines += [f"  {title}: and {len(texts) - NAMES_SHOWN} more"] if len(texts) > NAMES_SHOWN else []
    lines += [f"suspicious: {text}" for text in check.suspicious]
    if check.sheet is not None:
        lines.append(f"A few annotated images: {check.sheet}")
    lines.append("Nothing must be fixed." if check.is_usable else "Fix what is listed before training.")
    return "\n".join(lines)
