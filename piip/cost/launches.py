"""Counting what decides the time of small operations on accelerators: kernel launches, and waits of the host.

Both are counted from the operations that PyTorch dispatches, on any device: no accelerator is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    "_reshape_alias _unsafe_view alias as_strided detach expand permute reshape select slice split split_with_sizes "
    "squeeze t transpose unbind unsqueeze view".split()
)
WITHOUT_KERNEL = ("empty", "sym", "is_", "_local", "lift")  # beginnings of names: memory, sizes, questions to the host
SYNCHRONISING = frozenset(
    "_local_scalar_dense _unique2 equal is_nonzero masked_select nms nonzero unique_consecutive unique_dim".split()
)
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd  # operations that call others
INDEXING = frozenset({"_index_put_impl_", "index", "index_put", "index_put_"})  # by a mask, which is counted first


class Launches(NamedTuple):
    """What a program asks of an accelerator.

    Attributes:
        launches: Operations that start a kernel: all but views, allocations and questions for sizes.
        syncs: Operations that wait for a result, because a number or a shape depends on it.
    """

    launches: int
    syncs: int


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that run inside, by name.

    Attributes:
        launched: Operations that start a kernel.
        synced: Operations that synchronise with the host. One that also starts a kernel is in both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.synced: Counter[str] = Counter()

    def total(self) -> Launches:
        """Return how many there were of both."""
        return Launches(self.launched.total(), self.synced.total())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        # Inference mode hands on whole what otherwise arrives in parts. `func.decompose` would prefer the compiler's
        # decompositions: a resized map would be a hundred operations.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE.name):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        name = func.overloadpacket.__name__
        if name not in VIEWS and not name.startswith(WITHOUT_KERNEL):
            self.launched[name] += 1
        result = func(*args, **kwargs)
        if name in SYNCHRONISING or _has_mask(name, args) or _left_device(args, result):
            self.synced[name] += 1
        return result


def count_launches(run: Callable[[], object]) -> Launches:
    """Count the kernel launches and host synchronisations of a program, such as a forward pass or a training step.

    Args:
        run: The program; it is run once.

    Returns:
        Counts by dispatched operation. One operation may be several kernels on a device (a convolution, a sort), and
        a compiled graph is one only where its compiler is asked. On CPU tensors, copies to the host are not visible.

    Example:
        >>> image = torch.zeros(2, 3)
        >>> count_launches(lambda: (image.flatten() + 1).sum().item())
        Launches(launches=2, syncs=1)
    """
    counter = LaunchCounter()
    with counter:
        run()
    return counter.total()


def _has_mask(name: str, args: tuple[Any, ...]) -> bool:
    masks: Iterable[Tensor | None] = args[1] if name in INDEXING else ()
    return any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks)


def _left_device(args: tuple[Any, ...], result: Any) -> bool:
    """Return whether an operation copied a tensor from an accelerator to the host."""
    if not isinstance(result, Tensor) or result.device.type != "cpu":
        return False
    return any(isinstance(item, Tensor) and item.device.type not in ("cpu", "meta") for item in args)
