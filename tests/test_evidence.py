"""The evidence page: its tables are those of the recorded runs, which anyone can continue."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest
from tool_loading import load_tool

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "docs" / "evidence").glob("*.json"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("write_evidence")


def test_tables_are_those_of_the_recorded_runs(tool: ModuleType) -> None:
    assert RESULTS
    assert tool.with_tables(PAGE) == PAGE


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_means_are_those_of_the_runs(path: Path, tool: ModuleType) -> None:
    content = json.loads(path.read_text("utf-8"))
    for model in content["models"]:
        for metric in content["metrics"]:
            found = tool.scores(content, model["label"], model["rate"], metric)
            assert len(found) == len(model["seeds"])
            assert model["means"][metric] == (pytest.approx(statistics.fmean(found)) if found else None)
            assert model["deviations"][metric] == (pytest.approx(statistics.stdev(found)) if len(found) > 1 else None)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_recorded_comparison_is_laid_out_to_be_continued(path: Path, tool: ModuleType, tmp_path: Path) -> None:
    tool.restore(path.stem, tmp_path)
    rows = json.loads(path.read_text("utf-8"))["runs"]
    assert len({*tmp_path.rglob("result.json")}) == len(rows) > 0
    for row in rows:
        assert json.loads((tmp_path / row["folder"] / "result.json").read_text("utf-8")) == row


def test_a_table_without_a_place_on_the_page_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="0 places for"):
        tool.with_tables("# Evidence")
