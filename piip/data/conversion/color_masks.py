"""Masks of colours, of palettes, or of 0 and 255 to 8-bit masks of class indices (ADE20K layout)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.conversion.coco_files import place_image
from piip.data.conversion.color_table import IGNORE_NAME, ColorTable, read_colors
from piip.data.conversion.source import LeftOut, find_images, listed_splits, short_name, split_of
from piip.data.findings import NAMES_SHOWN
from piip.data.image_reading import BROKEN_IMAGE
from piip.data.orientation import turn_upright
from piip.data.semantic_masks import CLASS_LIST, find_classes
from piip.structures import IGNORE_INDEX

MASK_FOLDERS = ("masks", "annotations", "labels", "SegmentationClass", "mask", "gt", "GT")
IMAGE_FOLDERS = ("images", "JPEGImages", "image", "imgs", "img")
COLOR_TABLE = "labelmap.txt"  # written by CVAT beside its masks
ENDINGS = ("_mask", "_masks", "_label", "_labels", "_seg", "_gt")  # a mask's name may have one more than its image's


@dataclass(frozen=True)
class MaskPair:
    """A mask and its image.

    Args:
        mask: The file of the mask.
        image: The file of the image, or None where there are only masks.
        split: Name of its split.
        name: Its path in the output, without suffix.
    """

    mask: Path
    image: Path | None
    split: str
    name: str


def find_pairs(root: Path, images: Path | None, left_out: LeftOut) -> list[MaskPair]:
    """Find masks and their images by name.

    Args:
        root: Folder of masks, or of a folder of masks and one of images.
        images: Folder of images; None looks for one beside the masks.
        left_out: Where files without a partner are counted.

    Raises:
        ValueError: There are no masks, or none has an image.
    """
    folder = _first_folder(root, MASK_FOLDERS) or root
    images = images or (_first_folder(root, IMAGE_FOLDERS) if folder != root else None)
    dropped = [name.lower() for name in (*MASK_FOLDERS, *IMAGE_FOLDERS)]
    known = {_stem(short_name(path, images, dropped)): path for path in find_images(images)} if images else {}
    lists = listed_splits(root / "ImageSets" / "Segmentation")
    pairs, lone = [], dict(known)
    masks = find_images(folder)
    for path in masks:
        stem = _stem(short_name(path, folder, dropped))
        shorter = next((stem.removesuffix(each) for each in ENDINGS if stem.endswith(each)), stem)
        name = stem if stem in known or not known else shorter
        if images is not None and name not in known:
            left_out.add("masks without an image", str(path.relative_to(folder)))
            continue
        lone.pop(name, None)
        pairs.append(MaskPair(path, known.get(name), lists.get(path.stem, split_of(path, folder)), name))
    for path in lone.values():
        left_out.add("images without a mask", path.name)
    if not pairs:
        where = f" with the names of the images in {images}" if masks else ""
        raise ValueError(f"There are no masks in {folder}{where}, expected PNG files.")
    return pairs


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def write_masks(
    root: Path, out: Path, *, images: Path | None, colors: Path | None, link: bool = False
) -> tuple[dict[str, Any], LeftOut, list[str]]:
    """Write masks as class indices: annotations/SPLIT/NAME.png, images/SPLIT and classes.txt.

    Args:
        root: Folder of masks, or of a folder of masks and one of images.
        out: An empty folder.
        images: Folder of images; None looks for one beside the masks.
        colors: Table of colours; None uses CVAT's labelmap.txt, if there is one, else values are indices.
        link: Link to the images instead of copying them.

    Returns:
        Counts as `write_coco` (pixels instead of objects), what was left out, and notes for users.

    Raises:
        ValueError: Masks are missing, damaged, of another size than their images, or have unknown colours or values.
    """
    left_out = LeftOut()
    pairs = find_pairs(root, images, left_out)
    if colors is None and (root / COLOR_TABLE).is_file():
        colors = root / COLOR_TABLE
    read: _ByColor | _ByValue
    if colors is not None:
        table = read_colors(colors)
        classes, notes, read = table.classes, [f"colours are those of {colors}"], _ByColor(table)
    else:
        classes, notes, read = _by_value(root, [pair.mask for pair in pairs])
    splits: dict[str, Counter[str]] = {}
    pixels: Counter[int] = Counter()
    for pair, labels in _converted(pairs, read):
        _write_pair(pair, labels, out, link=link)
        splits.setdefault(pair.split, Counter()).update(images=int(pair.image is not None), masks=1)
        values, counts = np.unique(labels, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    (out / CLASS_LIST).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    if pixels[IGNORE_INDEX]:
        notes = [*notes, f"{pixels[IGNORE_INDEX]} pixels are {IGNORE_INDEX} (no class)"]
    report = {
        "splits": {split: dict(counts) for split, counts in sorted(splits.items())},
        "classes": {name: pixels[index] for index, name in enumerate(classes)},
    }
    return report, left_out, notes


def _write_pair(pair: MaskPair, labels: np.ndarray, out: Path, *, link: bool) -> None:
    target = out / "annotations" / pair.split / f"{pair.name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise ValueError(f"There are two masks {pair.split}/{pair.name}, expected one: rename {pair.mask}.")
    Image.fromarray(labels).save(target)
    if pair.image is not None:
        place_image(pair.image, out / "images" / pair.split / f"{pair.name}{pair.image.suffix}", link=link)


def _converted(pairs: Sequence[MaskPair], read: _ByColor | _ByValue) -> Iterator[tuple[MaskPair, np.ndarray]]:
    for pair in pairs:
        labels = read(pair.mask)
        if pair.image is not None:
            with Image.open(pair.image) as image:
                shape = turn_upright(image).size[::-1]
            if labels.shape != shape:
                raise ValueError(f"The mask {pair.mask} is {labels.shape}, its image {shape} (height, width).")
        yield pair, labels
    read.check()


class _ByColor:
    """Reads masks by their colours; unknown ones are counted, and refused at the end."""

    def __init__(self, table: ColorTable) -> None:
        self.table = table
        self.unknown: Counter[int] = Counter()
        self.places: dict[int, str] = {}

    def __call__(self, path: Path) -> np.ndarray:
        pixels = np.asarray(_open(path).convert("RGB")).astype(np.int64)
        codes = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
        places = np.searchsorted(self.table.codes, codes).clip(max=len(self.table.codes) - 1)
        values, counts = np.unique(codes[self.table.codes[places] != codes], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.unknown[value] += count
            self.places.setdefault(value, path.name)
        return self.table.indices[places]

    def check(self) -> None:
        if self.unknown:
            first = ", ".join(
                f"#{code:06x} ({count} pixels, first in {self.places[code]})"
                for code, count in self.unknown.most_common(NAMES_SHOWN)
            )
            raise ValueError(
                f"{sum(self.unknown.values())} pixels have {len(self.unknown)} colours that the table does not list: "
                f"{first}. Add them to the table; the name {IGNORE_NAME} stands for no class. Many similar colours "
                "come from JPEG or resized masks: export the masks as PNG."
            )


class _ByValue:
    """Reads masks whose values are class indices, or 0 and 255."""

    def __init__(self, is_binary: bool) -> None:
        self.is_binary = is_binary

    def __call__(self, path: Path) -> np.ndarray:
        values = _values(path)
        return (values == IGNORE_INDEX).astype(np.uint8) if self.is_binary else values.astype(np.uint8)

    def check(self) -> None:
        """Values were checked before."""


def _by_value(root: Path, masks: Sequence[Path]) -> tuple[list[str], list[str], _ByValue]:
    """Return the classes of masks of values, notes for users, and what reads them."""
    found: dict[int, str] = {}
    for path in masks:
        for value in np.unique(_values(path)).tolist():
            found.setdefault(value, path.name)
    listed = find_classes(root, None) if (root / CLASS_LIST).is_file() else None
    if max(found) == IGNORE_INDEX and set(found) <= {0, IGNORE_INDEX}:
        if listed is not None and len(listed) != 2:
            raise ValueError(
                f"The masks have the values 0 and 255 only, but {root / CLASS_LIST} has {len(listed)} names, "
                "expected 2."
            )
        return listed or ["background", "object"], ["the values 0 and 255 became the classes 0 and 1"], _ByValue(True)
    last = max((value for value in found if value != IGNORE_INDEX), default=0)
    wrong = [value for value in found if value > (len(listed) - 1 if listed else 254) and value != IGNORE_INDEX]
    if wrong:
        expected = (
            f"0 to {len(listed) - 1} or 255 for the {len(listed)} names in {CLASS_LIST}" if listed else "0 to 255"
        )
        raise ValueError(
            f"The masks have {len(wrong)} values that are not classes, first {wrong[0]} in {found[wrong[0]]}, expected "
            f"{expected}."
        )
    note = f"there is no {CLASS_LIST} in {root}, so classes are named class_0, class_1, ..."
    return listed or [f"class_{number}" for number in range(last + 1)], [] if listed else [note], _ByValue(False)


def _values(path: Path) -> np.ndarray:
    image = _open(path)
    if image.mode == "1":
        return np.asarray(image).astype(np.int64) * 255
    values = np.asarray(image if image.mode in ("P", "L", "I", "I;16") else image.convert("RGB")).astype(np.int64)
    if values.ndim == 3:
        if (values[..., :1] != values).any():
            raise ValueError(
                f"The mask {path} is of colours (mode {image.mode}): pass --colors FILE with lines NAME R G B."
            )
        values = values[..., 0]
    return values


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return turn_upright(image).copy()
    except BROKEN_IMAGE as error:
        raise ValueError(f"The mask {path} cannot be read ({type(error).__name__}: {error}).") from error
