"""Choosing where to compute."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: An unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:INDEX'.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:INDEX'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but PyTorch sees {torch.cuda.device_count()} GPUs. Use --device cpu.")
    return device


def check_devices(name: str, devices: int) -> None:
    """Check that a device can serve a number of processes.

    Args:
        name: As in `pick_device`.
        devices: Processes of this machine, each with a GPU of its own where the device is one.

    Raises:
        ValueError: None asked for, one GPU for several, or more GPUs than there are.
    """
    device = pick_device(name)
    if devices < 1:
        raise ValueError(f"devices is {devices}, expected at least 1.")
    if device.index is not None and devices > 1:
        raise ValueError(f"device is {name!r}, one GPU, but devices is {devices}. Use --device cuda.")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"devices is {devices}, but PyTorch sees {torch.cuda.device_count()} GPUs.")
