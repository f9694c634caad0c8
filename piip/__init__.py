"""piip: Parameter-Inverted Image Pyramid Networks (arXiv 2406.04330, 2501.07783).

Everything here loads on first use: `import piip` alone is nearly free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BranchConfig": "piip.config",
    "InteractionConfig": "piip.config",
    "MergeConfig": "piip.config",
    "NeckConfig": "piip.config",
    "HeadConfig": "piip.config",
    "ModelConfig": "piip.config",
    "PIIPBackbone": "piip.backbone",
    "Predictor": "piip.inference.predictor",
    "PyramidWarning": "piip.build",
    "build_backbone": "piip.build",
    "build_model": "piip.build",
    "create_model": "piip.zoo.create",
    "list_models": "piip.zoo.create",
    "from_pretrained": "piip.serialization.load",
    "load_model": "piip.serialization.load",
    "estimate_cost": "piip.cost.estimate",
    "explain_image": "piip.explain.inspect",
    "export_model": "piip.export.exporter",
    "checkpoints": "piip.checkpoints",
    "ops": "piip.ops",
    "optimize_for_inference": "piip.optimize.rewrite",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from piip import checkpoints, ops
    from piip.backbone import PIIPBackbone
    from piip.build import PyramidWarning, build_backbone, build_model
    from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
    from piip.cost.estimate import estimate_cost
    from piip.explain.inspect import explain_image
    from piip.export.exporter import export_model
    from piip.inference.predictor import Predictor
    from piip.optimize.rewrite import optimize_for_inference
    from piip.serialization.load import from_pretrained, load_model
    from piip.zoo.create import create_model, list_models


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'piip' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if _HOMES[name] == f"piip.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
