"""The command `piip bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from piip.output import to_json


def bench(
    models: list[str] | None = None,
    *,
    preset: str | None = None,
    dtype: list[str] | None = None,
    form: Literal["optimized", "eager", "compiled", "onnx", "openvino"] | None = None,
    repeats: int | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 1,
    with_head: bool = False,
    device: str = "auto",
    threads: int | None = None,
    out: Path = Path("out/bench"),
    json: bool = False,
) -> None:
    """Measure time and memory of models in turn, and show them beside their cost and accuracy.

    Each model runs in its own process, in alternation with the others; of the two passes of a turn the second counts.
    Accuracies are not measured: they are those the authors published, or those recorded when a model was trained.
    Without weights of their own, models run with random ones, which take the same time. "launches" and "syncs" are
    kernel launches and waits of the host in one eager pass; "time per MAC" is relative to the first model, in the same
    rounds.

    Write OUT/bench.json after every pass, and at the end OUT/bench.md, a table, and OUT/bench-DTYPE.png: accuracy
    against seconds, multiply-adds and memory.

    Args:
        models: Names from `piip list`, recipes, model directories or owner/name on the Hugging Face hub. Times per
            multiply-add are relative to the first.
        preset: A set of models instead: quick (four models), coco-short (ten), coco (every released Mask R-CNN and
            single network with a published AP, without InternViT-6B) or coco-6b (with it; 20 GiB of memory).
        dtype: Number formats, f32 and bf16. Default: f32, or the preset's.
        form: How models run: optimized by piip.optimize_for_inference, eager, compiled by torch.compile, or exported to
            ONNX Runtime or OpenVINO (f32). Default: optimized, or the preset's.
        repeats: Rounds that count, after the first pass. Default: 3, or the preset's.
        image_size: Height and width in pixels. Default: the size at which the authors evaluated a model, padding
            included, else its nominal square. At another size accuracies are left out.
        batch_size: Images per pass.
        with_head: Include detection and segmentation heads; otherwise backbone, merge and neck are measured.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        threads: Threads on the CPU. Default: PyTorch's.
        out: Folder of the results.
        json: Print JSON, with "machine", "complete" and "models".
    """
    from piip.bench.command import bench_models

    report = bench_models(
        models or [],
        preset=preset,
        dtypes=dtype,
        form=form,
        repeats=repeats,
        image_size=image_size,
        batch_size=batch_size,
        with_head=with_head,
        device=device,
        threads=threads,
        out=out,
        quiet=json,
    )
    if json:
        print(to_json(report.to_dict()))
