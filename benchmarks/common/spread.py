"""Models spread over processes of this machine (FSDP2, gloo)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import init_device_mesh

from piip.backbone import PIIPBackbone
from piip.training.sharding import load_sharded

Outputs = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Place:
    """One of several processes that share a model.

    Args:
        rank: Which one.
        size: How many.
        meeting: Path of a file that does not exist yet, the same for all.
    """

    rank: int
    size: int
    meeting: str

    def load(self, directory: Path) -> PIIPBackbone:
        """Load this process's share of a written backbone, in bfloat16."""
        dist.init_process_group("gloo", init_method=f"file://{self.meeting}", rank=self.rank, world_size=self.size)
        mesh = init_device_mesh("cpu", (self.size,), mesh_dim_names=("data_parallel",))
        model = load_sharded(directory, mesh, dtype="bf16")
        if not isinstance(model, PIIPBackbone):
            raise ValueError(
                f"{directory} holds a {type(model).__name__}, expected a backbone: write one with --write."
            )
        return model


def difference(found: Outputs, wanted: Outputs) -> float:
    """Return the relative L2 difference of all maps together."""
    error = math.hypot(*(float(np.linalg.norm(a - b)) for a, b in zip(found, wanted, strict=True)))
    return error / math.hypot(*(float(np.linalg.norm(level)) for level in wanted))
