"""Selection of devices, and building models without weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def pick_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: The name is unknown, or the GPU does not exist.
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
    """Check that a device supports a number of processes.

    Args:
        name: As in `pick_device`.
        devices: Processes of this machine; each one uses its own GPU, if the device is a GPU.

    Raises:
        ValueError: The number is below 1, or exceeds the GPUs.
    """
    device = pick_device(name)
    if devices < 1:
        raise ValueError(f"devices is {devices}, expected at least 1.")
    if device.index is not None and devices > 1:
        raise ValueError(f"device is {name!r}, one GPU, but devices is {devices}. Use --device cuda.")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"devices is {devices}, but PyTorch sees {torch.cuda.device_count()} GPUs.")


def check_precision(name: str, precision: str) -> str | None:
    """Check that a device computes in a precision, as far as that is known before a run.

    Args:
        name: As in `pick_device`.
        precision: "32", "bf16" or "16".

    Returns:
        A sentence of advice, or None if the precision suits the device.

    Raises:
        ValueError: float16 on a CPU.
    """
    device = pick_device(name)
    if precision == "16" and device.type == "cpu":
        raise ValueError("run.precision is '16' (float16), which needs a GPU; on a CPU use --run.precision bf16 or 32.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            f"{torch.cuda.get_device_name(device)} has no bfloat16 units and emulates them, which is slow: use "
            "--run.precision 16 or 32."
        )
    return None


# Operations that fill new parameters; on the meta device they have no effect but take three quarters of the time.
FILLERS = "add_ clamp_ copy_ div_ erfinv_ fill_ mul_ normal_ sub_ trunc_normal_ uniform_ zero_".split()


class _NoFilling(TorchFunctionMode):
    """Skip the initialisation of tensors on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call every function except those that fill a tensor."""
        if getattr(func, "__name__", "") in FILLERS:
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, torch.Tensor) and target.is_meta:
                return target
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Build models on the meta device, without their initialisation."""
    with torch.device("meta"), _NoFilling():
        yield
