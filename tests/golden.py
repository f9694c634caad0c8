"""Weights and inputs of the golden cases."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from piip.checkpoints import build_official

FOLDER = Path(__file__).parent / "data" / "golden"
GAMMAS = {
    *("ca_gamma", "cffn_gamma", "ca_weight", "cffn_weight"),
    *("gamma_1", "gamma_2", "gamma", "layer_scale_parameter"),
}
TABLES = {"pos_embed", "cls_token", "relative_position_bias_table", "class_embedding"}
TABLE_PARTS = ("spatial_pos_embed", "temporal_pos_embed", "position_embedding")


def offset_grid(heads: int, points: int) -> np.ndarray:
    angles = np.arange(heads) * (2 * np.pi / heads)
    rays = np.stack([np.cos(angles), np.sin(angles)], -1)
    rays = rays / np.abs(rays).max(-1, keepdims=True)
    return (rays[:, None, :] * np.arange(1, points + 1)[None, :, None]).reshape(-1)


def fill_value(key: str, shape: tuple[int, ...], heads: int, points: int) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    leaf = key.rsplit(".", 1)[-1]
    scale, centre = np.float32(1 / math.sqrt(float(np.prod(shape[1:])))), np.float32(0)
    if key.endswith("sampling_offsets.bias"):
        return offset_grid(heads, points).astype(np.float32) + np.float32(0.1) * noise
    if len(shape) == 0:
        scale, centre = np.float32(0.1), np.float32(1)
    elif leaf in GAMMAS:
        scale = np.float32(0.3)
    elif leaf in TABLES or any(part in key for part in TABLE_PARTS):
        scale = np.float32(0.5)
    elif len(shape) == 1:
        scale, centre = (np.float32(0.1), np.float32(1)) if leaf == "weight" else (np.float32(0.2), np.float32(0))
    return centre + scale * noise


def case_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_case(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(FOLDER / f"{name}.npz") as outputs:
        return json.loads((FOLDER / f"{name}.json").read_text()), dict(outputs)


def build_case(case: dict[str, Any]) -> torch.nn.Module:
    archs = {name: case.get(name) for name in ("convnext_arch", "clip_arch", "timm_convnext_arch")}
    model = build_official(case["config"], code_base=case["code_base"], official_class=case["official_class"], **archs)
    return model.eval()


def case_state(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    heads, points = case["filler"]["deform_num_heads"], case["filler"]["n_points"]
    return {
        key: torch.from_numpy(np.asarray(fill_value(key, tuple(shape), heads, points), np.float32))
        for key, shape in dict(case["state_dict"]).items()
        if not key.endswith("relative_position_index")
    }


def case_image(case: dict[str, Any]) -> torch.Tensor:
    rng = np.random.default_rng(case["input"]["seed"])
    return torch.from_numpy(rng.standard_normal(tuple(case["input"]["shape"])).astype(np.float32))
