"""The base class of all models: description, parts, saving, sharing and exporting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from piip.config import ModelConfig
from piip.cost.counting import Countable, NamesParts
from piip.layers.merge import CombinesBranches
from piip.layers.outputs import ExportWrapper

if TYPE_CHECKING:
    from piip.backbone import PIIPBackbone


class ModelParts(nn.Module, ABC):
    """A model with named parts.

    Attributes:
        config: Description of the model; None for a model built from modules.
    """

    config: ModelConfig | None

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part, in the order of the forward pass.

        Names are "branch 0", "branch 1", ..., "interactions", "merge", "neck" and "head"; parts that the model does not
        have are omitted. Parts of a detection or segmentation head are "head: NAME"; the last one may contain the
        others.
        """

    @abstractmethod
    def get_backbone(self) -> PIIPBackbone:
        """Return the pyramid of the model, which is the model itself if it has no head."""

    def combining_parts(self) -> list[CombinesBranches]:
        """Return the merges and the head, where the branches come together; empty where they stay apart."""
        return []

    def up_to_dense_head(self) -> ModelParts:
        """Return the model without a detection or segmentation head: the backbone of such a model, or the model."""
        return self

    def dry_run(self, image: Tensor, scope: NamesParts) -> str:
        """Run everything that costs at inference on an image without values, to count it.

        Args:
            image: On the meta device, (1, 3, H, W).
            scope: Is told which part runs where no module of it is called.

        Returns:
            What the cost assumes where it depends on the image, for printing; empty if it does not.
        """
        self(image)
        return ""


def countable(model: nn.Module) -> Countable:
    """Return a model as it is counted; any other module is the single part "model" and runs its forward pass."""
    if isinstance(model, ModelParts):
        return Countable(model, model.parts(), model.dry_run)

    def run(image: Tensor, scope: NamesParts) -> str:
        model(image)
        return ""

    return Countable(model, {"model": [model]}, run)


class PyramidModel(ModelParts):
    """A model with a description.

    Args:
        config: Description of the model; None for a model built from modules, which cannot be saved.
        mean: Channel means of the images, RGB in [0, 1], if the description has none.
        std: Channel standard deviations of the images, if the description has none.
        image_size: Nominal side of the input image in pixels.

    Attributes:
        pretrained_cfg: timm's description of the input: `mean`, `std`, `input_size` (3, H, W).
        metadata: JSON values that are saved with the model, e.g. "classes", "transform", "metrics", "license".
        title: Name of this kind of model, for cards.
        hub_task: Task on the Hugging Face hub ("pipeline_tag").
    """

    title: str
    hub_task: str

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

    @abstractmethod
    def summary(self) -> str:
        """Return one sentence about the output, for cards."""

    @abstractmethod
    def usage(self) -> str:
        """Return Python code that runs the model on `image`, given `mean` and `std`, and prints the output."""

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of storing them."""

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are usually excluded from weight decay."""

    @abstractmethod
    def export_wrapper(self) -> ExportWrapper:
        """Return the model as one graph with named outputs.

        Raises:
            ValueError: The model cannot be exported.
        """

    def save_pretrained(
        self, directory: str | Path, *, metadata: Mapping[str, Any] | None = None, dtype: str = "f32"
    ) -> None:
        """Write weights, description and model card; `piip.from_pretrained(directory)` builds the model again.

        Args:
            directory: Output directory, created if missing. A README.md that was edited by hand is kept.
            metadata: JSON values to add to the model's metadata in config.json and card, e.g. "classes", "metrics".
            dtype: "f32" or "bf16" for floating-point weights.

        Raises:
            ValueError: The model has no description, or the dtype is unknown.
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
        """Upload the files of `save_pretrained` to the Hugging Face hub.

        Args:
            repo_id: "owner/name"; created if missing.
            private: Visibility of a new repository; that of an existing one is not changed.
            token: Token with write access; None uses that of HF_TOKEN or `hf auth login`.
            revision: Branch to commit to, created if missing; None is the main branch.
            commit_message: First line of the commit.
            metadata: See `save_pretrained`.
            dtype: See `save_pretrained`.

        Returns:
            URL of the commit.

        Raises:
            ValueError: The owner does not exist, the token has no write access, or the network is unavailable.
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
