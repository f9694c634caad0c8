"""The notebooks run from the first cell to the last, and lie in the repository without outputs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import shapes
from pages import ROOT

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Parameters for the test; a cell with the tag "parameters" has those of the notebook.
PARAMETERS = {
    "first_steps": "",
    "finetune_nuclei": "EPOCHS, BATCH_SIZE, WORKERS = 1, 2, 0",
    "own_pyramid": "EPOCHS = 1",
}
# Warnings of ours are errors; what the tests list of third parties is let through.
STRICT = "import warnings\nwarnings.filterwarnings('error', module='piip')"


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def is_parameters(cell: dict[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def test_there_are_notebooks() -> None:
    assert {path.stem for path in BOOKS} == PARAMETERS.keys()


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_without_outputs(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum(map(is_parameters, code)) == 1
    assert cells(path)[0]["cell_type"] == "markdown"
    assert path.stat().st_size < 20_000


def write_nuclei(folder: Path) -> None:
    """Write drawn shapes in the layout of `piip data nuclei`."""
    (folder / "images").mkdir(parents=True)
    for seed, split in enumerate(("train", "val", "test")):
        shapes.write_coco(folder, split, 4, seed=seed)
        content = json.loads((folder / f"{split}.json").read_text())
        for row in content["images"]:
            name = f"{split}-{row['file_name']}"
            shutil.move(folder / split / row["file_name"], folder / "images" / name)
            row["file_name"] = name
        for row in content["annotations"]:
            row["category_id"] = 1
        content["categories"] = [{"id": 1, "name": "nucleus"}]
        (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_nuclei(tmp_path / "data" / "nuclei")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if is_parameters(cell):
            cell.source += f"\n{STRICT}\n{PARAMETERS[path.stem]}"
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in book.cells if cell.cell_type == "code" and not is_parameters(cell)]
    assert all(cell.execution_count for cell in code)
    assert sum(bool(cell.outputs) for cell in code) >= len(code) // 2
