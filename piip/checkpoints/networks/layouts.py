"""Recognising publishers' layouts by characteristic names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from piip.checkpoints.networks import clip, convnext, vit
from piip.checkpoints.networks.names import Tensors, below
from piip.serialization.weights import StoredTensor

Translate = Callable[[Tensors], dict[str, StoredTensor]]


def _same(tensors: Tensors) -> dict[str, StoredTensor]:
    return dict(tensors)


@dataclass(frozen=True)
class Layout:
    """Names of a publisher for the tensors of one network.

    Args:
        title: Name in messages.
        anchor: A name in every file of the layout, but in none of the layouts after it in the list.
        family: "vit", "clip", "convnext" or "uniperceiver".
        translate: Brings names below the prefix to the family's common ones.
    """

    title: str
    anchor: str
    family: str
    translate: Translate


LAYOUTS = (
    Layout("Uni-Perceiver", "visual_embed.patch_embed.proj.weight", "uniperceiver", _same),
    Layout("CLIP (Hugging Face)", "pre_layrnorm.weight", "clip", clip.from_hugging_face),
    Layout("CLIP (OpenAI)", "ln_pre.weight", "clip", clip.from_openai),
    Layout("CLIP (timm)", "norm_pre.weight", "clip", clip.from_timm),
    Layout("AugReg (.npz)", "embedding/kernel", "vit", vit.from_augreg),
    Layout("InternViT (Hugging Face)", "embeddings.patch_embedding.weight", "vit", vit.from_intern_vision_model),
    Layout("ViT (timm)", "patch_embed.proj.weight", "vit", vit.from_timm),
    Layout("ConvNeXt (Hugging Face)", "embeddings.patch_embeddings.weight", "convnext", convnext.from_hugging_face),
    Layout("ConvNeXt (authors)", "downsample_layers.0.0.weight", "convnext", convnext.from_authors),
    Layout("ConvNeXt (timm)", "stem.0.weight", "convnext", convnext.from_timm),
)


@dataclass(frozen=True)
class SingleNetwork:
    """The tensors of one network.

    Args:
        title: The layout's name.
        family: The layout's family.
        tensors: Under the family's common names.
        others: Number of tensors outside the network: a text tower, a classifier.
    """

    title: str
    family: str
    tensors: Tensors
    others: int


def read_network(tensors: Tensors) -> SingleNetwork | None:
    """Recognise a file with one network.

    Args:
        tensors: By the names of the file.

    Returns:
        The network, or None if no known layout matches or the file has several networks.

    Raises:
        ValueError: The file is an unsupported variant or a part of a known layout.
    """
    for layout in LAYOUTS:
        found = [
            name
            for name in tensors
            if name == layout.anchor or name.endswith(("." + layout.anchor, "/" + layout.anchor))
        ]
        if len(found) == 1:
            inside = below(tensors, found[0].removesuffix(layout.anchor))
            try:
                translated = layout.translate(inside)
            except (KeyError, IndexError) as error:  # query without key, a number where a matrix belongs
                raise ValueError(
                    f"The file has the names of {layout.title}, but parts are missing or of other shapes ({error})."
                ) from error
            return SingleNetwork(layout.title, layout.family, translated, len(tensors) - len(inside))
    return None
