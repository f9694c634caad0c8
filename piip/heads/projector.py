"""The projector of multimodal models: tokens for a language model from the maps of all branches.

Source: arXiv 2501.07783, section 3.5; layer order of the authors' release
(llava/llava/model/multimodal_projector/builder.py at cc67bf4), `docs/official.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from piip.layers.merge import PointwiseLinear, group_norm, resize_map


class Projector(nn.Module):
    """Map every branch to the language model's width on the finest grid, and add.

    Args:
        widths: Channels of each branch's map.
        width: Channels D of the tokens.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.projections = nn.ModuleList(
            [
                nn.Sequential(
                    PointwiseLinear(channels, width), group_norm(width), nn.GELU(), PointwiseLinear(width, width)
                )
                for channels in widths
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return tokens (B, H * W, D) on the grid of the last map, of one map (B, C_i, H_i, W_i) a branch."""
        height, width = maps[-1].shape[-2:]
        projected = [
            projection(resize_map(branch, (height, width)))
            for projection, branch in zip(self.projections, maps, strict=True)
        ]
        return sum(projected[1:], projected[0]).flatten(2).transpose(1, 2)
