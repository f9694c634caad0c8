"""The command `piip convert`."""

from __future__ import annotations

import json as json_module
from typing import Literal


def convert(
    file: str,
    out: str,
    *,
    model: str,
    branch: int | None = None,
    dtype: Literal["keep", "f32", "bf16"] = "keep",
    max_shard_size: str = "5GB",
    json: bool = False,
) -> None:
    """Turn a published checkpoint into a model directory, without running anything that is in it.

    A whole model of the authors (plain, in a training checkpoint, or inside a detector or a multimodal model), or with
    --branch the weights of one network (DeiT, MAE, AugReg, DINOv2, BEiT v2, InternViT, CLIP, ConvNeXt, Uni-Perceiver):
    position tables and patch kernels are resized to the branch's. Run it again on the same OUT for the next branch.

    Args:
        file: PyTorch file (.pth, .pt, .bin, .ckpt), .safetensors, .npz, or the directory or index of one in several
            files.
        out: Directory to write: new, empty, or an earlier conversion for the same model.
        model: A name from `piip list` or `piip list --official`.
        branch: Put a single network's weights into this branch; 0 is the largest network. Branches that no file has
            filled keep a random start.
        dtype: Number format of the weights; "keep" leaves them as they are in the file.
        max_shard_size: Above this size the weights go into several files, e.g. 500MB or 5GB.
        json: Print JSON, with "files", "tensors", "left_out", "resized" and more.
    """
    from piip.checkpoints.convert import bytes_bar, convert_checkpoint, format_conversion, parse_size

    limit = parse_size(max_shard_size)
    with bytes_bar(f"Writing {out}") as progress:
        done = convert_checkpoint(
            file, out, model=model, branch=branch, dtype=dtype, max_shard_bytes=limit, progress=progress
        )
    print(json_module.dumps(done.to_dict()) if json else format_conversion(done))
