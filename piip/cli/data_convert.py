"""The command `piip data convert`."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from piip.data.conversion.convert import Conversion


def data_convert(
    src: str,
    out: str,
    *,
    format: str | None = None,
    images: str | None = None,
    colors: str | None = None,
    link: bool = False,
    json: bool = False,
) -> None:
    """Convert a data set of another tool (YOLO, Pascal VOC, CVAT, LabelMe, colour masks) to one that can be trained on.

    Boxes and outlines become COCO files, OUT/SPLIT.json with OUT/images; masks become class indices, OUT/annotations
    with OUT/images and OUT/classes.txt. Splits stay as they are.

    Args:
        src: Folder of the data set.
        out: New or empty folder; it is created only when complete.
        format: yolo, voc, labelme, cvat, masks, or another name that datumaro knows. Default: guessed.
        images: For masks: folder of images with the names of the masks. Default: looked for beside them.
        colors: For masks: file with lines NAME R G B or NAME #rrggbb; the name ignore stands for no class.
        link: Link to the images instead of copying them.
        json: Print the counts as JSON.
    """
    from piip.data.conversion.convert import convert_dataset

    folders = [Path(name) if name else None for name in (images, colors)]
    done = convert_dataset(Path(src), Path(out), name=format, images=folders[0], colors=folders[1], link=link)
    print(json_text.dumps(done.as_json()) if json else "\n".join(_lines(done, out)))


def _lines(done: Conversion, out: str) -> list[str]:
    lines = [f"format: {done.format} (guessed from the files; --format NAME chooses another)"] * done.is_guessed
    for split, counts in done.report["splits"].items():
        lines.append(f"{split}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    kind = "pixels" if done.format == "masks" else "objects"
    lines += [f"{name}: {count} {kind}" for name, count in done.report["classes"].items()]
    return [*lines, *(f"note: {note}" for note in done.notes), *done.left_out.lines(), f"Written to {out}."]
