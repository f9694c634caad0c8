"""Principal components of features as colours, in a basis that maps before and after an interaction have in common."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from piip.structures import BranchFeatures

COMPONENTS = 3
QUANTILES = (0.01, 0.99)  # of the values, become the ends of a colour axis
# Change of (R, G, B) along each component: brightness, yellow against blue, and little of magenta against green:
# red-green colour blindness hides only the weakest component.
AXES = ((0.5, 0.5, 0.5), (0.22, 0.14, -0.42), (0.16, -0.16, 0.16))


def component_colours(before: BranchFeatures, after: BranchFeatures) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the first image's features before and after an interaction as colours.

    Args:
        before: Features of a branch before the interaction, (B, N, C).
        after: The same branch's features after it.

    Returns:
        Colours before and after, uint8 (H, W, 3), and the share of the variance that they show, in [0, 1].
    """
    tokens = torch.cat((before.patches[0], after.patches[0])).float().cpu()  # (2 N, C)
    tokens = tokens - tokens.mean(0)
    values, vectors = torch.linalg.eigh(tokens.T @ tokens)  # ascending
    basis = vectors.flip(1)[:, :COMPONENTS]
    # eigenvectors have no sign of their own
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    explained = float(values[-COMPONENTS:].sum() / values.sum().clamp(min=torch.finfo(values.dtype).tiny))
    colours = _colours(tokens @ basis).numpy().reshape(2, *before.grid, 3)
    return colours[0], colours[1], explained


def _colours(projected: Tensor) -> Tensor:
    """Return uint8 (N, 3) for components (N, K), K at most three."""
    low, high = projected.quantile(torch.tensor(QUANTILES), dim=0)
    centred = ((projected - (low + high) / 2) / ((high - low) / 2).clamp(min=1e-12)).clamp(-1, 1)
    axes = torch.tensor(AXES)[: centred.shape[1]]
    return ((0.5 + centred @ axes).clamp(0, 1) * 255).round().to(torch.uint8)


def relative_change(before: BranchFeatures, after: BranchFeatures) -> np.ndarray:
    """Return the length of every position's change relative to the mean length before, (H, W).

    Args:
        before: Features before an interaction, (B, N, C).
        after: Features after it.
    """
    first, second = before.patches[0].float(), after.patches[0].float()
    scale = first.norm(dim=-1).mean().clamp(min=1e-12)
    return ((second - first).norm(dim=-1) / scale).cpu().numpy().reshape(before.grid)
