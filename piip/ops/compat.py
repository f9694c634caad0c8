"""Compatibility with older versions of PyTorch, from 2.6 on."""

from __future__ import annotations

import torch

try:
    from torch.compiler import is_exporting as is_exporting
except ImportError:  # PyTorch 2.6; goes when 2.7 is the oldest

    def is_exporting() -> bool:
        """Return whether a program is being exported, except by `torch.export.export(..., strict=True)`.

        Strict export uses the tracer of `torch.compile`, and PyTorch 2.6 cannot distinguish the two.
        """
        return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def require_torch(version: tuple[int, int], what: str) -> None:
    """Check the version of PyTorch.

    Args:
        version: Minimum version.
        what: Beginning of the message.

    Raises:
        ValueError: PyTorch is older.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < version:
        raise ValueError(
            f"{what} needs PyTorch {'.'.join(map(str, version))} or newer, but {torch.__version__} is installed."
        )
