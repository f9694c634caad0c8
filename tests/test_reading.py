"""Published files: every format is read, none of them can run anything, damaged ones are named."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from piip.checkpoints.reading import open_checkpoint
from piip.checkpoints.unwrapping import find_weights

STATE = {"blocks.0.weight": torch.randn(3, 4), "scale": torch.tensor(2.0), "count": torch.tensor([3])}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def read(path: Path) -> dict[str, torch.Tensor]:
    found = find_weights(open_checkpoint(path), source=str(path))
    for tensor in found.tensors.values():
        value = tensor.read()
        assert (tuple(value.shape), value.dtype) == (tensor.facts.shape, tensor.facts.dtype)
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def check(path: Path) -> None:
    got = read(path)
    assert {*got} == {*STATE}
    assert all(torch.equal(got[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt", "weights"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_pytorch_files(tmp_path: Path, suffix: str, as_zip: bool) -> None:
    path = tmp_path / f"file.{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=as_zip)
    check(path)


def test_safetensors_under_any_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "file.bin")
    check(tmp_path / "file.bin")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_directories_and_indices_of_several_files(tmp_path: Path, kind: str) -> None:
    places = {}
    for index, (name, value) in enumerate(STATE.items()):
        file = f"part-{index}.{kind}"
        (save_file if kind == "safetensors" else torch.save)({name: value}, tmp_path / file)
        places[name] = file
    index_name = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (tmp_path / index_name).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    check(tmp_path)
    check(tmp_path / index_name)
    (tmp_path / places["scale"]).unlink()
    with pytest.raises(ValueError, match="which is missing: download all files"):
        open_checkpoint(tmp_path)


def test_directories_with_one_file(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    check(tmp_path)


def test_arrays_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, **{name: value.numpy() for name, value in STATE.items()}, name=np.array("text"))
    check(path)


@pytest.mark.parametrize("as_zip", [True, False])
def test_plain_data_of_training_programs_may_come_along(tmp_path: Path, as_zip: bool) -> None:
    others = {
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("/x").name, folder=pathlib.Path("a/b")),
        "best": np.float64(81.8),
        "epoch": np.int64(3),
        "curve": np.arange(4.0),
        "names": np.array(["a", "b"]),
        "shape": torch.Size([1, 2]),
        "note": None,
    }
    path = tmp_path / "file.pth"
    torch.save({"model": STATE, **others}, path, _use_new_zipfile_serialization=as_zip)
    check(path)
    found = find_weights(open_checkpoint(path), source="file")
    assert found.wrappings == ("model",)
    assert {*found.ignored} == {*others}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("inside", ["beside", "within", "alone"])
def test_pickles_that_would_run_something_are_refused(tmp_path: Path, as_zip: bool, inside: str) -> None:
    made, path = tmp_path / "made", tmp_path / "file.pth"
    contents = {"beside": {"model": STATE, "args": Touch(made)}, "within": {**STATE, "x": [Touch(made)]}}
    torch.save(contents.get(inside, Touch(made)), path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(ValueError, match=r"asks for posix\.system while it is read, which is never executed") as caught:
        open_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not made.exists()
    torch.load(path, weights_only=False)  # the file is a real attack
    assert made.exists()


def test_builtin_functions_are_refused_too(tmp_path: Path) -> None:
    class Evaluate:
        def __reduce__(self) -> tuple[Any, ...]:
            return eval, ("1 + 1",)

    torch.save({"a": Evaluate()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="asks for eval while it is read, which is never executed"):
        open_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_plain_pickles_are_not_run(tmp_path: Path, protocol: int) -> None:
    made, path = tmp_path / "made", tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"a": Touch(made)}, protocol=protocol))
    with pytest.raises(ValueError, match=r"never executed|nothing of it was run|is damaged or no checkpoint"):
        open_checkpoint(path)
    assert not made.exists()


def test_an_attack_in_a_shard_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"a": torch.ones(1), "b": Touch(made)}, tmp_path / "one.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "one.bin"}}))
    with pytest.raises(ValueError, match=r"one\.bin asks for posix\.system"):
        open_checkpoint(tmp_path)
    assert not made.exists()


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "file.npz"
    np.savez(path, good=np.ones(2), bad=np.array([Touch(made)], dtype=object))
    with pytest.raises(ValueError, match="holds Python objects in bad, which are never executed"):
        open_checkpoint(path)
    assert not made.exists()


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.7, 0.99])
def test_cut_files_are_named(tmp_path: Path, as_zip: bool, share: float) -> None:
    path = tmp_path / "file.pth"
    torch.save({"a": torch.zeros(500)}, path, _use_new_zipfile_serialization=as_zip)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"file\.pth is (damaged|empty)"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "only the pointer of a Git LFS file"),
        (b"<!DOCTYPE html><html></html>", "is a web page, not a checkpoint"),
        (b'{"architectures": []}', "is not an index of a checkpoint"),
        (b'{"weight_map": {"a": "file.pth"}}', "names file.pth, which is no checkpoint but text"),
        (b"some text about something", "is damaged or no"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ not json", "is damaged or not a safetensors file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "is damaged or no"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(path)


def test_archives_without_a_state_dict_are_named(tmp_path: Path) -> None:
    for members, message in (
        (("x/data.pkl", "x/constants.pkl", "x/code/model.py"), "is a TorchScript archive"),
        (("readme.txt",), "zip archive without a checkpoint"),
    ):
        with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
            for name in members:
                archive.writestr(name, "text")
        with pytest.raises(ValueError, match=message):
            open_checkpoint(tmp_path / "file.zip")
    torch.save(torch.zeros(3), tmp_path / "one.pth")
    with pytest.raises(ValueError, match="holds a Tensor, expected a state dict"):
        open_checkpoint(tmp_path / "one.pth")
    with pytest.raises(ValueError, match="There is no file"):
        open_checkpoint(tmp_path / "nothing.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        open_checkpoint(tmp_path / "folder")
