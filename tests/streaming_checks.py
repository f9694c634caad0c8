"""What `test_streaming.py` runs in processes of their own, to measure their memory and to share a model.

python streaming_checks.py memory DIRECTORY DTYPE    prints peak bytes before and after loading, and bytes of weights
python streaming_checks.py rank DIRECTORY RANK SIZE  writes DIRECTORY/RANK.pt: what a process holds and computes
"""

from __future__ import annotations

import json
import resource
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from piip.serialization.load import load_model
from piip.training import sharding

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


def report_memory(directory: str, dtype: str) -> None:
    load_model(directory + "/empty", dtype=dtype)  # imports and threads take memory of their own
    start = peak_bytes()
    model = load_model(directory + "/model", dtype=dtype)
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    print(json.dumps({"start": start, "peak": peak_bytes(), "weights": weights}))


def report_rank(directory: str, rank: str, size: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=int(rank), world_size=int(size))
    mesh = init_device_mesh("cpu", (int(size),), mesh_dim_names=("data_parallel",))
    sharding.LEAST_PARAMETERS = 500
    model = sharding.load_sharded(directory + "/model", mesh, dtype="f32")
    held = 0
    for parameter in model.parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held += own.untyped_storage().nbytes()
    with torch.no_grad():
        maps = model(IMAGE)
    half = sharding.load_sharded(directory + "/model", mesh, dtype="bf16")
    with torch.no_grad():
        half_maps = half(IMAGE)
    model(IMAGE)[0].square().mean().backward()
    norm = float(sharding.gradient_norm(model))
    torch.save({"held": held, "maps": maps, "half": half_maps, "norm": norm}, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    {"memory": report_memory, "rank": report_rank}[sys.argv[1]](*sys.argv[2:])
