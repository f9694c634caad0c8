"""The machine that measures."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

BF16_UNITS = ("amx_bf16", "avx512_bf16")


def machine(device: str = "cpu", *, threads: int | None = None) -> dict[str, Any]:
    """Say where and when a measurement was made.

    Args:
        device: "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of PyTorch's operations; None for those of this process.

    Returns:
        "processor", "cores", "bf16_units" (instructions for bfloat16 products), "threads", "device" (name of the GPU,
        or "cpu"), "torch" and "date".
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(names) or os.cpu_count(),
        "bf16_units": [unit for unit in BF16_UNITS if unit in flags],
        "threads": threads or torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def describe_machine(facts: dict[str, Any]) -> str:
    """Return the machine in one line.

    Args:
        facts: From `machine`.
    """
    units = ", ".join(unit.replace("_", " ") for unit in facts["bf16_units"]) or "no bfloat16 units"
    where = facts["processor"] if facts["device"] == "cpu" else f"{facts['device']}, {facts['processor']}"
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    return f"{where} ({units}), {threads}, PyTorch {facts['torch']}, {facts['date']}"


def available_bytes(device: str = "cpu") -> int:
    """Return the memory that new processes can use, of the machine or of the GPU.

    Args:
        device: "cpu", "cuda" or "cuda:INDEX".
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
