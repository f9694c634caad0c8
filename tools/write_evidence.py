"""Write the tables of docs/evidence.md from the results of comparisons, and take over such results.

    python tools/write_evidence.py                          # tables, from docs/evidence/NAME.json
    python tools/write_evidence.py --take runs/compare/NAME # copy a comparison's results and figure into docs first
    python tools/write_evidence.py --restore NAME OUT       # write finished runs into OUT

The JSON files are `results.json` of `piip compare`: every run with its scores, and means over seeds. After --restore,
`piip compare recipes/compare/NAME.yaml --out OUT` continues a comparison without repeating its runs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PAGE, IMAGES = DOCS / "evidence", DOCS / "evidence.md", DOCS / "images"
MARKS = "<!-- {name}: by tools/write_evidence.py -->", "<!-- end of {name} -->"
Row = Mapping[str, Any]


def cell(values: Sequence[float]) -> str:
    """Return mean and standard deviation in percent; "-" without values, the mean alone for one."""
    if not values:
        return "-"
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def scores(content: Row, label: str, rate: float, metric: str) -> list[float]:
    """Return a metric of every finished run of a model at its rate."""
    runs = [row for row in content["runs"] if row["label"] == label and row["rate"] == rate and row["fraction"] == 1]
    return [row["scores"][metric] for row in runs if row.get("scores")]


def table(content: Row) -> str:
    """Return the models that have a finished run, in Markdown, recomputed from the runs."""
    metrics = content["metrics"]
    heads = ["model", *(f"{metric} %" for metric in metrics), "seeds", "GMACs", "of which head", "M params"]
    heads += ["ms / image", "training GMACs / image", "rate"]
    lines = [heads, ["---", *("---:" for _ in heads[1:])]]
    for model in content["models"]:
        if not model["seeds"]:
            continue
        found = [scores(content, model["label"], model["rate"], metric) for metric in metrics]
        seconds = model["seconds_per_image"]
        lines.append(
            [
                model["label"],
                *map(cell, found),
                str(len(found[0])),
                f"{model['macs'] / 1e9:.2f}",
                f"{(model['macs'] - model['macs_without_head']) / 1e9:.2f}",
                f"{model['params'] / 1e6:.2f}",
                "-" if seconds is None else f"{1000 * seconds:.0f}",
                f"{model['training_macs_per_image'] / 1e9:.1f}",
                f"{model['rate']:g}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(page: str) -> str:
    """Return the page with the table of every comparison between its marks."""
    for path in sorted(RESULTS.glob("*.json")):
        begin, end = (mark.format(name=path.stem) for mark in MARKS)
        found = table(json.loads(path.read_text("utf-8")))
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        page, count = pattern.subn(lambda _, new=f"{begin}\n\n{found}\n\n{end}": new, page)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for {path.stem}, expected one: {begin} ... {end}")
    return page


def take(out: Path) -> None:
    """Copy results and figure of a comparison into the documentation."""
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(out / "results.json", RESULTS / f"{out.name}.json")
    shutil.copyfile(out / "accuracy.png", IMAGES / f"evidence_{out.name}.png")


def restore(name: str, out: Path) -> None:
    """Write the result of every finished run into a folder for `piip compare`, which does not repeat them."""
    for row in json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["runs"]:
        folder = out / row["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(row, indent=1), encoding="utf-8")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="of a comparison")
    parser.add_argument("--restore", nargs=2, metavar=("NAME", "OUT"))
    options = parser.parse_args()
    if options.restore:
        restore(options.restore[0], Path(options.restore[1]))
        return
    if options.take:
        take(options.take)
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
