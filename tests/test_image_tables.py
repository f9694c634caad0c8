"""Rows of Parquet files are images like others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import piip
from piip.cli import main
from piip.data.image_reading import read_rgb, stored_shape
from piip.data.image_tables import is_row, row_bytes, table_rows
from piip.data.listing import find_images

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
MODEL = Path(piip.__file__).parent / "assets" / "nuclei" / "model"


def encoded(level: int, size: tuple[int, int] = (6, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, columns: dict[str, object], *, group: int = 2) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def test_rows_are_read_in_order(tmp_path: Path) -> None:
    table = write(tmp_path / "x.parquet", {"label": list(range(5)), "image": [encoded(i) for i in range(5)]})
    rows = find_images(table)
    assert [str(row) for row in rows] == [f"{table}#{index}" for index in range(5)]
    assert find_images(str(tmp_path / "*.parquet")) == rows
    assert find_images(rows) == rows
    assert [np.asarray(read_rgb(row))[0, 0, 0] for row in reversed(rows)] == [4, 3, 2, 1, 0]
    assert stored_shape(rows[0]) == (4, 6)


def test_structs_of_data_sets_are_read(tmp_path: Path) -> None:
    values = [{"bytes": encoded(7), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    rows = table_rows(write(tmp_path / "X.PARQUET", {"picture": values}))
    assert np.asarray(read_rgb(rows[0]))[0, 0, 0] == 7
    with pytest.raises(ValueError, match=r"X.PARQUET#1 cannot be read .*files that it names are not fetched"):
        read_rgb(rows[1])


def test_files_that_are_written_again(tmp_path: Path) -> None:
    table = write(tmp_path / "x.parquet", {"image": [encoded(1)]})
    assert np.asarray(read_rgb(table_rows(table)[0]))[0, 0, 0] == 1
    write(table, {"image": [encoded(2), encoded(3)]})
    assert [np.asarray(read_rgb(row))[0, 0, 0] for row in table_rows(table)] == [2, 3]


def test_coded_columns_are_read(tmp_path: Path) -> None:
    codes = pyarrow.array([encoded(1), encoded(2), encoded(1)]).dictionary_encode()
    rows = table_rows(write(tmp_path / "x.parquet", {"image": codes}))
    assert [np.asarray(read_rgb(row))[0, 0, 0] for row in rows] == [1, 2, 1]


def test_the_column_must_be_clear(tmp_path: Path) -> None:
    two = write(tmp_path / "two.parquet", {"a": [b"1"], "b": [b"2"]})
    with pytest.raises(ValueError, match="has the columns a, b, expected the images as bytes in one called 'image'"):
        find_images(two)
    names = write(tmp_path / "names.parquet", {"image": ["a.png"], "thumb": [b"1"]})
    with pytest.raises(ValueError, match="has the columns image, thumb, expected the images as bytes"):
        find_images(names)
    with pytest.raises(ValueError, match="has no rows"):
        find_images(write(tmp_path / "empty.parquet", {"image": pyarrow.array([], pyarrow.binary())}))
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"text.parquet cannot be read as Parquet"):
        find_images(tmp_path / "text.parquet")


def test_rows_that_do_not_exist(tmp_path: Path) -> None:
    table = write(tmp_path / "x.parquet", {"image": [encoded(1)]})
    with pytest.raises(ValueError, match=r"has 1 rows, there is no row 1"):
        row_bytes(f"{table}#1")
    assert not is_row("x.parquet")
    assert not is_row("x.png#1")
    assert is_row("a#b/x.parquet#12")


def test_predictions_for_rows_are_those_for_files(tmp_path: Path, one_thread: None) -> None:
    file = next((MODEL.parent / "images").glob("nuclei*"))
    table = write(tmp_path / "x.parquet", {"image": [b"damaged", file.read_bytes()]})
    with pytest.raises(SystemExit, match="1"):
        main(["predict", str(MODEL), str(table), "--out", str(tmp_path / "out"), "--device", "cpu"])
    main(["predict", str(MODEL), str(file), "--out", str(tmp_path / "alone"), "--device", "cpu"])
    rows, alone = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("out", "alone"))
    assert rows["annotations"] == alone["annotations"]
    assert rows["images"][0]["file_name"] == "x.parquet#1"
    drawn = (Image.open(values["images"][0]["drawn"]) for values in (rows, alone))
    assert np.array_equal(*map(np.asarray, drawn))
