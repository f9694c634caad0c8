"""Weights on disk: files equal to safetensors' own, in one piece or several, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from piip.serialization.weights import TensorFacts, open_safetensors, open_weights, weight_files, write_weights

TENSORS = {
    "scalar": torch.tensor(1.5),
    "flags": torch.tensor([True, False, True]),
    "half": torch.randn(3, 5).bfloat16(),
    "counts": torch.arange(7),
    "turned": torch.randn(4, 6).T,
    "none": torch.zeros(0, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
}
FACTS = {name: TensorFacts(tuple(value.shape), value.dtype) for name, value in TENSORS.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return {*first} == {*second} and all(
        value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items()
    )


def test_files_are_those_that_safetensors_reads(tmp_path: Path) -> None:
    assert write_weights(tmp_path, FACTS, TENSORS.items()) == ["model.safetensors"]
    assert equal(load_file(tmp_path / "model.safetensors"), TENSORS)
    stored = open_weights(tmp_path)
    assert {name: tensor.facts for name, tensor in stored.items()} == FACTS
    assert equal({name: tensor.read() for name, tensor in stored.items()}, TENSORS)


@pytest.mark.parametrize("limit", [1, 60, 100, 10_000])
def test_shards_hold_the_same(tmp_path: Path, limit: int) -> None:
    told: list[tuple[int, int]] = []
    names = write_weights(
        tmp_path, FACTS, TENSORS.items(), max_shard_bytes=limit, progress=lambda done, total: told.append((done, total))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert equal({name: tensor.read() for name, tensor in open_weights(tmp_path).items()}, TENSORS)
    assert told[-1] == (told[-1][1], sum(value.numel() * value.itemsize for value in TENSORS.values()))
    if limit == 10_000:
        return
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert {*places} == {*TENSORS}
    for name in weight_files(tmp_path):
        held = load_file(tmp_path / name)
        size = sum(value.numel() * value.itemsize for value in held.values())
        assert size <= limit or sum(value.numel() > 0 for value in held.values()) == 1
        assert all(places[key] == name for key in held)


def test_numbers_start_where_their_format_wants_them(tmp_path: Path) -> None:
    write_weights(tmp_path, FACTS, TENSORS.items())
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, value in TENSORS.items():
        assert (8 + length + header[name]["data_offsets"][0]) % value.itemsize == 0


def test_what_stood_there_before_goes(tmp_path: Path) -> None:
    write_weights(tmp_path, FACTS, TENSORS.items(), max_shard_bytes=60)
    (tmp_path / "config.json").write_text("{}")
    assert write_weights(tmp_path, FACTS, TENSORS.items()) == ["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    write_weights(tmp_path, FACTS, TENSORS.items(), max_shard_bytes=60)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_failure_leaves_the_earlier_files(tmp_path: Path) -> None:
    save_file({"earlier": torch.ones(2)}, tmp_path / "model.safetensors")

    def failing() -> Iterator[tuple[str, Tensor]]:
        yield from list(TENSORS.items())[:4]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_weights(tmp_path, FACTS, failing(), max_shard_bytes=60)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert {*load_file(tmp_path / "model.safetensors")} == {"earlier"}


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    names = write_weights(tmp_path, FACTS, TENSORS.items(), max_shard_bytes=60)
    (tmp_path / names[1]).write_bytes(b"1234567890")
    with pytest.raises(ValueError, match=f"{names[1]} is damaged or not a safetensors file"):
        open_weights(tmp_path)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match=f"{names[1]} is missing"):
        open_weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="is not an index of a checkpoint"):
        open_weights(tmp_path)


def test_an_index_stays_in_its_directory(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lists a file outside its directory"):
        open_weights(tmp_path)


def test_formats_that_are_not_known_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds a as F8_E4M3, expected one of F64"):
        open_safetensors(tmp_path / "model.safetensors")
