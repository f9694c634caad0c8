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
    "Predictor": "piip.prediction",
    "PyramidWarning": "piip.build",
    "build_backbone": "piip.build",
    "build_model": "piip.build",
    "create_model": "piip.zoo",
    "list_models": "piip.zoo",
    "from_pretrained": "piip.hub",
    "load_model": "piip.saving",
    "estimate_cost": "piip.cost",
    "export_model": "piip.export",
    "checkpoints": "piip.checkpoints",
    "ops": "piip.ops",
    "optimize_for_inference": "piip.inference",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from piip import checkpoints, ops
    from piip.backbone import PIIPBackbone
    from piip.build import PyramidWarning, build_backbone, build_model
    from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
    from piip.cost import estimate_cost
    from piip.export import export_model
    from piip.hub import from_pretrained
    from piip.inference import optimize_for_inference
    from piip.prediction import Predictor
    from piip.saving import load_model
    from piip.zoo import create_model, list_models


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
