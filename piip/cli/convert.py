"""The command `piip convert`."""

from __future__ import annotations

from typing import Literal

from piip.output import to_json


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
    """Convert a published checkpoint to a model directory, without executing any code in it.

    FILE is a whole model of the authors (a plain file, a training checkpoint, a detector or a multimodal model). With
    --branch it is a single network (DeiT, MAE, AugReg, DINOv2, BEiT v2, InternViT, CLIP, ConvNeXt, Uni-Perceiver). Its
    position tables and patch kernels are resized to the branch. Run again with the same OUT for the next branch.

    Args:
        file: PyTorch file (.pth, .pt, .bin, .ckpt), .safetensors, .npz, or the directory or index file of a sharded
            checkpoint.
        out: Directory to write: new, empty, or an earlier conversion for the same model.
        model: A name from `piip list` or `piip list --official`.
        branch: Load a single network's weights into this branch; 0 is the largest network. Other branches keep their
            weights, random ones in a new directory.
        dtype: Number format of the saved weights; "keep" uses that of the file.
        max_shard_size: Maximum size of a weight file before splitting, e.g. 500MB or 5GB.
        json: Print JSON, with "files", "tensors", "left_out", "resized" and more.
    """
    from piip.checkpoints.convert import bytes_bar, convert_checkpoint, format_conversion, parse_size

    limit = parse_size(max_shard_size)
    with bytes_bar(f"Writing {out}") as progress:
        done = convert_checkpoint(
            file, out, model=model, branch=branch, dtype=dtype, max_shard_bytes=limit, progress=progress
        )
    print(to_json(done.to_dict()) if json else format_conversion(done))
