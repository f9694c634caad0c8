"""Does a device compute what the CPU computes? Providers of deformable attention, heads, and training steps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import piip
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.ops import PROVIDERS, deformable_attention
from piip.structures import IGNORE_INDEX

AUTOCAST = {"bf16": torch.bfloat16, "f16": torch.float16}
DTYPES = {"f32": torch.float32, **AUTOCAST}
# Relative L2 differences that are accepted: of float32 with TF32 off, and of formats with 8 and 11 bits.
LIMITS = {"f32": 2e-4, "bf16": 4e-2, "f16": 1e-2}
SHAPES = {  # (H, W), heads, channels, points, queries
    "small": ((14, 20), 4, 16, 4, 70),
    "odd": ((5, 7), 3, 24, 3, 33),
    "TSB, to coarse": ((56, 84), 12, 64, 4, 1200),
}
IMAGE = (128, 160)
Row = dict[str, Any]


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 difference of two tensors, computed on the CPU; infinite where values are not finite."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    if not bool(found.isfinite().all()):
        return float("inf")
    scale = float(wanted.norm())
    return float((found - wanted).norm()) / (scale or 1.0)


def row(check: str, dtype: str, difference: float) -> Row:
    """Return a row of results; differences that are not finite are written as None."""
    is_finite = difference < float("inf")
    return {
        "check": check,
        "dtype": dtype,
        "difference": difference if is_finite else None,
        "limit": LIMITS[dtype],
        "ok": is_finite and difference <= LIMITS[dtype],
    }


def _sampled(provider: str, shape: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return the result of one provider and its gradients, on numbers that depend on the shape alone."""
    grid, heads, dim, points, queries = SHAPES[shape]
    generator = torch.Generator().manual_seed(dim)
    value = torch.randn(2, grid[0] * grid[1], heads, dim, generator=generator).bfloat16()  # exact in all formats
    locations = torch.rand(2, queries, heads, points, 2, generator=generator) * 1.4 - 0.2
    weights = torch.randn(2, queries, heads, points, generator=generator).bfloat16()
    leaves = [value.to(device, dtype), locations.to(device), weights.to(device, dtype)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = deformable_attention(leaves[0], grid, leaves[1], leaves[2], provider=provider)
    out.backward(torch.linspace(-1, 1, out.numel(), device=device).view_as(out).to(out.dtype))
    return [out, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def providers(device: str, shapes: list[str]) -> list[Row]:
    """Compare every provider, forward and backward, with `grid_sample` in float64 on the CPU."""
    rows = []
    for shape in shapes:
        wanted = _sampled("portable", shape, torch.float64, "cpu")
        for provider in PROVIDERS:
            for name, dtype in DTYPES.items():
                check = f"provider {provider}, {shape}"
                try:
                    found = _sampled(provider, shape, dtype, device)
                except ValueError as error:  # it does not take these tensors, and says so
                    rows.append({"check": check, "dtype": name, "not_supported": str(error), "ok": True})
                    continue
                rows.append(row(check, name, max(map(relative, found, wanted))))
    return rows


def _branch(network: str, image_size: int, **timm_args: Any) -> BranchConfig:
    return BranchConfig(network, image_size, timm_args=timm_args)


VITS = (
    _branch("vit_tiny_patch16_224", 64, embed_dim=32, depth=2, num_heads=2),
    _branch("vit_tiny_patch16_224", 128, embed_dim=16, depth=2, num_heads=2),
)
CONVOLUTIONS = (
    _branch("convnext_atto", 64, depths=[1, 1, 1, 1], dims=[16, 24, 32, 48]),
    _branch("convnext_atto", 128, depths=[1, 1, 1, 1], dims=[8, 16, 24, 32]),
)


def _dense(head: str) -> ModelConfig:
    interaction, neck = InteractionConfig(count=4, num_heads=4), NeckConfig("interaction", interactions=(0, 1, 2))
    return ModelConfig(CONVOLUTIONS, interaction, MergeConfig("slim"), neck, HeadConfig(head, 3, width=32))


def _of_vits(head: str, **merge: Any) -> ModelConfig:
    return ModelConfig(VITS, InteractionConfig(num_heads=4), head=HeadConfig(head, 3), **merge)


MODELS = {
    "classifier": _of_vits("pooled"),
    "classifier per branch": _of_vits("per_branch", merge=MergeConfig("none")),
    "tower": ModelConfig(
        VITS, InteractionConfig(num_heads=4), MergeConfig("none"), head=HeadConfig("projector", width=24)
    ),
    "mask_rcnn": _dense("mask_rcnn"),
    "dino": _dense("dino"),
    "upernet": _dense("upernet"),
}


def build(name: str) -> Any:
    """Build a small model with open gates, so that interactions matter."""
    torch.manual_seed(0)
    model = piip.build_model(MODELS[name])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("gate", "offsets.weight", "weights.weight")):
                nn.init.normal_(parameter, std=0.2)
    return model


def images(device: str) -> Tensor:
    """Return two images."""
    return torch.randn(2, 3, *IMAGE, generator=torch.Generator().manual_seed(0)).to(device)


def _maps(model: Any, image: Tensor) -> Tensor:
    """Return what the head computes of, or the classifier's and the tower's result, as one vector."""
    part = model.up_to_dense_head()
    result = part(image)
    return torch.cat([values.float().flatten() for values in ([result] if isinstance(result, Tensor) else result)])


@torch.no_grad()
def heads(device: str, names: list[str]) -> list[Row]:
    """Compare the maps of every model with the CPU's, in float32 and under autocast; heads also predict."""
    rows = []
    for name in names:
        model = build(name).eval()
        wanted = _maps(model, images("cpu"))
        moved = copy.deepcopy(model).to(device)
        for dtype in DTYPES:
            with torch.autocast(torch.device(device).type, DTYPES[dtype], enabled=dtype != "f32"):
                rows.append(row(f"forward {name}", dtype, relative(_maps(moved, images(device)), wanted)))
        if model.config.head.is_dense:
            found, want = moved.predict(images(device))[0], model.predict(images("cpu"))[0]
            same = {key: tuple(values.shape) == tuple(want[key].shape) for key, values in found.items()}
            rows.append({"check": f"predict {name}", "dtype": "f32", "same_shapes": same, "ok": all(same.values())})
    return rows


def targets(head: str, device: str) -> list[dict[str, Tensor]]:
    """Return what two images contain: two objects each, or a semantic mask."""
    if head == "upernet":
        labels = torch.randint(0, 3, (2, *IMAGE), generator=torch.Generator().manual_seed(1))
        labels[:, :8] = IGNORE_INDEX
        return [{"labels": each.to(device)} for each in labels]
    masks = torch.zeros(2, *IMAGE, dtype=torch.bool)
    masks[0, 10:60, 20:70], masks[1, 40:120, 60:150] = True, True
    boxes = torch.tensor([[20.0, 10, 70, 60], [60, 40, 150, 120]])
    one = {"boxes": boxes.to(device), "labels": torch.tensor([0, 2]).to(device), "masks": masks.to(device)}
    return [one, dict(one)]


def _step(name: str, device: str, dtype: str) -> tuple[float, float]:
    """Return loss and norm of the gradients of one training step, with loss scaling in float16."""
    model = build(name).train().to(device)
    torch.manual_seed(0)
    kind = torch.device(device).type
    scaler = torch.amp.GradScaler(kind, enabled=dtype == "f16" and kind == "cuda")
    with torch.autocast(kind, DTYPES[dtype], enabled=dtype != "f32"):
        if model.config.head.is_dense:
            losses = model.compute_losses(images(device), None, targets(name, device)).losses
            loss = torch.stack([*losses.values()]).sum()
        else:
            loss = model(images(device)).float().square().mean()
    scaler.scale(loss).backward()
    scale = scaler.get_scale() if scaler.is_enabled() else 1.0
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return float(loss.detach()), float(torch.stack(norms).norm()) / scale


# The losses of the other heads are of objects and noise that each device draws in its own way.
WITHOUT_DRAWS = ("classifier", "classifier per branch", "tower", "upernet")


def training_steps(device: str, names: list[str]) -> list[Row]:
    """Compare losses and gradients of one step with the CPU's where nothing is drawn; elsewhere they must be finite."""
    rows: list[Row] = []
    for name in names:
        wanted = _step(name, "cpu", "f32")
        for dtype in DTYPES:
            if dtype == "f16" and torch.device(device).type == "cpu":
                continue  # PyTorch trains in float16 on GPUs only
            found = _step(name, device, dtype)
            differences = [abs(a - b) / (abs(b) or 1.0) for a, b in zip(found, wanted, strict=True)]
            made = row(f"training step {name}", dtype, max(differences))
            if name not in WITHOUT_DRAWS:
                made["limit"], made["ok"] = None, all(0 < value < float("inf") for value in found)
            rows.append({**made, "loss": found[0]} if found[0] == found[0] else made)
    return rows
