"""Models that know what they were built from, and can therefore be written, shared and built again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from piip.config import ModelConfig


class DescribedModel(nn.Module):
    """A model with its description.

    Args:
        config: What the model was built from; None for one put together by hand, which cannot be saved.
        mean: Channel means of the images, RGB in [0, 1], where the description names none.
        std: Channel deviations likewise.
        image_size: Nominal side of the given image in pixels.

    Attributes:
        pretrained_cfg: timm's description of the input: `mean`, `std`, `input_size` (3, H, W).
        metadata: JSON values that are saved with the model, e.g. "classes", "transform", "metrics", "license".
    """

    config: ModelConfig | None

    def __init__(
        self,
        config: ModelConfig | None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        self.pretrained_cfg: Mapping[str, Any] = {
            "mean": (config and config.mean) or mean,
            "std": (config and config.std) or std,
            "input_size": (3, image_size, image_size),
        }

    def save_pretrained(
        self, directory: str | Path, *, metadata: Mapping[str, Any] | None = None, dtype: str = "f32"
    ) -> None:
        """Write weights, description and model card; `piip.from_pretrained(directory)` builds the model again.

        Args:
            directory: Made where missing. A README.md that somebody wrote or changed stays as it is.
            metadata: JSON values to add to the model's own for config.json and card, e.g. "classes", "metrics".
            dtype: "f32" or "bf16" for floating-point weights.

        Raises:
            ValueError: A model without description, or an unknown dtype.
        """
        from piip.serialization.hub import save_pretrained

        save_pretrained(self, directory, metadata=metadata, dtype=dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        metadata: Mapping[str, Any] | None = None,
        dtype: str = "f32",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: "owner/name"; made where missing.
            private: Visibility of a repository that is made; one that exists keeps its own.
            token: Write access; None takes the one of HF_TOKEN or `hf auth login`.
            revision: Branch to commit to, made where missing; None is the main one.
            commit_message: First line of the commit.
            metadata: See `save_pretrained`.
            dtype: See `save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            ValueError: What keeps the upload from working: no such owner, no right to write, no network.
        """
        from piip.serialization.hub import push_to_hub

        return push_to_hub(
            self,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            metadata=metadata,
            dtype=dtype,
        )
