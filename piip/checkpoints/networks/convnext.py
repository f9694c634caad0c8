"""ConvNeXt, brought to timm's names from those of its authors and of Hugging Face, and on to a branch's.

Facts: facebookresearch/ConvNeXt `convnext.py`, huggingface/transformers `modeling_convnext.py`, timm `convnext.py`.
"""

from __future__ import annotations

from collections.abc import Collection

from piip.checkpoints.networks.names import Tensors, rename
from piip.serialization.weights import StoredTensor

AUTHORS_RULES = (
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
)
HUGGING_FACE_RULES = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^layernorm\.", "head.norm."),
    (r"^encoder\.", ""),
    (r"\.downsampling_layer\.", ".downsample."),
    (r"\.layers\.", ".blocks."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
)
TO_HUGGING_FACE = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."),
    (r"^stem\.1\.", "embeddings.layernorm."),
    (r"^head\.norm\.", "layernorm."),
    (r"^stages\.", "encoder.stages."),
    (r"\.downsample\.", ".downsampling_layer."),
    (r"\.blocks\.", ".layers."),
    (r"\.gamma$", ".layer_scale_parameter"),
    (r"\.conv_dw\.", ".dwconv."),
    (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
)


def from_authors(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read the names of the authors' files."""
    return rename(tensors, AUTHORS_RULES)


def from_hugging_face(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read the names of Hugging Face's ConvNextModel."""
    return rename(tensors, HUGGING_FACE_RULES)


def from_timm(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read timm's names, which are the common ones here."""
    # the multimodal release stores timm's layer scale as `weight`
    return rename(tensors, [(r"^(stages\.\d+\.blocks\.\d+)\.weight$", r"\1.gamma")])


def to_branch(tensors: Tensors, wanted: Collection[str]) -> dict[str, StoredTensor]:
    """Bring timm's names to those of a branch: Hugging Face's in detection, timm's in the multimodal models."""
    if any("convnext_model.embeddings." in name for name in wanted):
        return rename(tensors, [*TO_HUGGING_FACE, (r"^", "convnext_model.")])
    return rename(tensors, [(r"^(stages\.\d+\.blocks\.\d+)\.gamma$", r"\1.weight"), (r"^", "convnext_model.")])
