"""Cost of a model, by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from piip.config import BranchConfig, ModelConfig

SIZES = {"embed_dim": "wide", "depth": "deep"}  # arguments that make a named network another one


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a model for one image.

    Attributes:
        macs: Multiply-adds in matrix products, convolutions, attention and sampling.
        params: Parameters.
        elementwise: Results of norms, activations, additions, pooling and interpolation.
        activation_bytes: Bytes that a training step saves for the backward pass; 0 for detection and segmentation
            heads, which train on other regions and queries than they predict with.
    """

    macs: int = 0
    params: int = 0
    elementwise: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class CostReport:
    """Cost of a model for one image.

    Attributes:
        parts: Cost by part, in the order of the forward pass: "branch 0", ..., "interactions", "merge", "neck", "head".
            Parts of a detection or segmentation head are "head: fpn" and so on, what is in none of them "head: other".
        image_size: (H, W) of the image in pixels.
        rule: Name of the rule in `piip.cost.estimate.COST_RULES`.
        names: Network of each branch, for printing.
        meaning: Description of the rule, and what it assumes where the cost depends on the image, for printing.
    """

    parts: Mapping[str, PartCost]
    image_size: tuple[int, int]
    rule: str
    names: Mapping[str, str] = field(default_factory=dict)
    meaning: str = ""

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model."""
        return sum(part.macs for part in self.parts.values())

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-add."""
        return 2 * self.macs

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return sum(part.params for part in self.parts.values())

    @property
    def elementwise(self) -> int:
        """Elementwise results of the whole model, not part of `macs`."""
        return sum(part.elementwise for part in self.parts.values())

    @property
    def activation_bytes(self) -> int:
        """Bytes that a training step of one image saves for the backward pass, without those of dense heads."""
        return sum(part.activation_bytes for part in self.parts.values())

    def without(self, *names: str) -> CostReport:
        """Return the report without some parts, e.g. `report.without("neck", "head")`; "head" is all its parts."""
        kept = {name: part for name, part in self.parts.items() if name not in names and _group(name) not in names}
        return dataclasses.replace(self, parts=kept)

    @property
    def without_head(self) -> CostReport:
        """Report of the model without its head: of its backbone and neck."""
        return self.without("head")

    def __str__(self) -> str:
        return format_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values (JSON-ready)."""
        backbone = self.without("neck", "head")
        return {
            "image_size": list(self.image_size),
            "rule": self.rule,
            "meaning": self.meaning,
            "macs": self.macs,
            "flops": self.flops,
            "params": self.params,
            "elementwise": self.elementwise,
            "activation_bytes": self.activation_bytes,
            "without_head": {"macs": self.without_head.macs, "params": self.without_head.params},
            "without_neck_and_head": {"macs": backbone.macs, "params": backbone.params},
            "parts": {
                name: {
                    "network": self.names.get(name),
                    "macs": part.macs,
                    "flops": 2 * part.macs,
                    "params": part.params,
                    "elementwise": part.elementwise,
                    "activation_bytes": part.activation_bytes,
                }
                for name, part in self.parts.items()
            },
        }


def _group(name: str) -> str:
    """Return what a part belongs to: "head" for "head: fpn"."""
    return name.split(": ")[0]


def name_branches(report: CostReport, config: ModelConfig) -> CostReport:
    """Return a report whose branches carry the names of their networks.

    Args:
        report: Of a model with this description.
        config: The description.
    """
    names = {f"branch {i}": _label(branch) for i, branch in enumerate(config.branches)}
    return dataclasses.replace(report, names=names)


def _label(branch: BranchConfig) -> str:
    """Return a branch's network, with width and depth where they are not the network's own."""
    sizes = [f"{branch.timm_args[key]} {word}" for key, word in SIZES.items() if key in branch.timm_args]
    return f"{branch.network}{' ' + ', '.join(sizes) if sizes else ''} @ {branch.image_size}"


def format_table(report: CostReport) -> str:
    """Return the report as a text table.

    Args:
        report: From `estimate_cost`.
    """
    rows = [("part", "GMACs", "share", "params (M)", "elementwise (M)", "activations (MB)")]
    has_details = report.elementwise > 0  # not every rule knows elementwise results
    entries = list(report.parts.items())
    groups = {_group(name) for name in report.parts}
    if {"neck", "head"} <= groups:
        entries.append(("without head", _total(report.without_head)))
    if {"neck", "head"} & groups:
        entries.append(("without neck and head", _total(report.without("neck", "head"))))
    entries.append(("total", _total(report)))
    for name, part in entries:
        label = f"{name} ({report.names[name]})" if name in report.names else name
        rows.append(
            (
                label,
                f"{part.macs / 1e9:.3f}",
                f"{100 * part.macs / max(report.macs, 1):.1f} %",
                f"{part.params / 1e6:.2f}",
                f"{part.elementwise / 1e6:.1f}" if has_details else "-",
                f"{part.activation_bytes / 1e6:.1f}" if part.activation_bytes else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    height, width = report.image_size
    rule = f"rule {report.rule}" + (f": {report.meaning}" if report.meaning else "")
    head = f"{height}x{width} pixels, one image; 1 MAC = 1 multiply-add = 2 FLOPs; {rule}"
    return "\n".join([head, *lines])


def _total(report: CostReport) -> PartCost:
    return PartCost(report.macs, report.params, report.elementwise, report.activation_bytes)
