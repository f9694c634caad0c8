"""Weights, maps and truths of the golden cases of heads."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "data" / "heads"


def load_head_case(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return json.loads((FOLDER / f"{name}.json").read_text()), dict(arrays)


def _value(key: str, shape: list[int], case: dict[str, Any]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32((case["salt"] + key).encode())).standard_normal(tuple(shape))
    noise, gain = noise.astype(np.float32), np.float32(1)
    for pattern, number in case["fill_gain_rules"].items():
        if re.search(pattern, key):
            gain = np.float32(number)
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * gain * np.abs(noise)
    if len(shape) <= 1:
        centre = np.float32(1 if key.endswith(".weight") else 0)
        return centre + np.float32(0.1) * gain * noise
    if key.endswith(("level_embeds", "query_embed.weight", "label_embedding.weight")):
        return gain * noise
    return gain * noise / np.float32(np.sqrt(np.prod(shape[1:])))


def head_state(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = {
        key: torch.from_numpy(np.asarray(_value(key, shape, case), np.float32))
        for key, shape in case["state_dict_shapes"].items()
        if not key.endswith("num_batches_tracked")
    }
    for key, index, constant in case["fill_adds"]:
        if index is None:
            state[key] += constant
        else:
            state[key].view(-1)[index] += constant
    return state


def head_maps(case: dict[str, Any]) -> list[torch.Tensor]:
    seed, scale = case["input_seed"], np.float32(case["input_scale"])
    return [
        torch.from_numpy(np.random.default_rng([seed, i]).standard_normal(tuple(s)).astype(np.float32) * scale)
        for i, s in enumerate(case["input_shapes"])
    ]


def unpacked(arrays: dict[str, np.ndarray], name: str, shape_name: str) -> np.ndarray:
    shape = tuple(arrays[shape_name])
    return np.unpackbits(arrays[name])[: int(np.prod(shape))].reshape(shape).astype(bool)


def stub_features(case: dict[str, Any], image: torch.Tensor) -> list[torch.Tensor]:
    """Return the maps of the stub backbone of an end-to-end case."""
    stub, maps = case["stub"], []
    for i, (channels, stride) in enumerate(zip(stub["channels"], stub["strides"], strict=True)):
        rng = np.random.default_rng(zlib.crc32((stub["salt"] + f"stub.{i}.weight").encode()))
        weight = rng.standard_normal((channels, 3)).astype(np.float32) * np.float32(stub["gain"])
        pooled = torch.nn.functional.avg_pool2d(image, stride, stride)
        maps.append(torch.einsum("ck,bkhw->bchw", torch.from_numpy(weight), pooled).tanh())
    return maps


def case_targets(case: dict[str, Any], outputs: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    return [
        {
            "boxes": torch.from_numpy(outputs[f"gt.boxes.{i}"]),
            "labels": torch.from_numpy(outputs[f"gt.labels.{i}"]).long(),
        }
        for i in range(len(case["img_metas"]))
    ]
