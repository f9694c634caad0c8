"""What a pyramid is compared with, as much as possible without piip's code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import piip
from piip.branches.tokens import TokenBranch
from piip.layers import attention
from piip.structures import BranchFeatures


@contextlib.contextmanager
def like_the_authors() -> Iterator[None]:
    """Run piip's models the way the released code does: plain sampling, windows cut anew in every block."""

    def run_blocks(self: TokenBranch, indices: range, tokens: Tensor, features: BranchFeatures, window: int) -> Tensor:
        for index in indices:
            tokens = self.run_block(index, tokens, features, window, is_cut=False)
        return tokens

    def sample(value: Tensor, grid: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
        return piip.ops.deformable_attention(value, grid, locations, weights, provider="portable")

    with (
        mock.patch.object(TokenBranch, "_run_blocks", run_blocks),
        mock.patch.object(attention, "deformable_attention", sample),
    ):
        yield


class WindowedViT(nn.Module):
    """A ViT of timm's blocks as a detection backbone (after ViTDet, arXiv 2203.16527), without any code of piip.

    Args:
        name: timm's name of a plain ViT of patch size 16.
        image_size: Side of the square image in pixels, a multiple of 16 * `window`.
        window: Side of the attention windows in tokens; every third block of twelve attends globally. 0 for none.
    """

    def __init__(self, name: str, image_size: int, *, window: int) -> None:
        super().__init__()
        self.vit = timm.create_model(name, img_size=image_size, class_token=False, global_pool="avg", num_classes=0)
        self.vit.norm = nn.Identity()
        width, depth = self.vit.embed_dim, len(self.vit.blocks)
        self.window = window
        self.is_global = [not window or (index + 1) % (depth // 4) == 0 for index in range(depth)]
        self.up = nn.ModuleList(
            [
                nn.Sequential(_doubling(width), nn.GroupNorm(32, width), nn.GELU(), _doubling(width)),
                _doubling(width),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return four maps of an image (B, 3, H, W)."""
        tokens = self.vit.pos_drop(self.vit.patch_embed(image) + self.vit.pos_embed)
        side = int(tokens.shape[1] ** 0.5)
        for block, is_global in zip(self.vit.blocks, self.is_global, strict=True):
            tokens = block(tokens) if is_global else self._windowed(block, tokens, side)
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))
        return [level(maps) for level in self.up]

    def _windowed(self, block: Block, tokens: Tensor, side: int) -> Tensor:
        batch, count, width = tokens.shape
        shape = (batch, side // self.window, self.window, side // self.window, self.window, width)
        cut = tokens.view(shape).transpose(2, 3).reshape(-1, self.window**2, width)
        swapped = (shape[0], shape[1], shape[3], shape[2], shape[4], width)
        return block(cut).view(swapped).transpose(2, 3).reshape(batch, count, width)


def _doubling(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def convnext(name: str = "convnext_base") -> nn.Module:
    """Return timm's ConvNeXt as a detection backbone: maps of strides 4 to 32."""
    return timm.create_model(name, features_only=True)


def equal_pyramid(name: str, sizes: tuple[int, ...]) -> nn.Module:
    """Return the same network at every resolution, its maps merged, with the neck of the detection models.

    The networks do not exchange features: this is the plain image pyramid of the paper's Figure 1(b).
    """
    branches = tuple(piip.BranchConfig(name, size, window_size=14, prefix_tokens=False) for size in sizes)
    config = piip.ModelConfig(
        branches,
        interaction=piip.InteractionConfig(count=1),
        merge=piip.MergeConfig(kind="conv"),
        neck=piip.NeckConfig(kind="simple"),
        allow_direct=True,
    )
    model = piip.build_backbone(config)
    model.interactions = nn.ModuleList([_NoExchange() for _ in model.interactions])  # type: ignore[assignment]
    return model


class _NoExchange(nn.Module):
    def forward(self, features: list[BranchFeatures]) -> list[BranchFeatures]:
        return features


@torch.no_grad()
def open_gates(model: nn.Module) -> None:
    """Give interaction gates, which start at zero, values: what is multiplied by zero might be left out."""
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.normal_(std=0.1)
