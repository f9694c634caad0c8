"""Plain vision transformers, brought to timm's names: DeiT, MAE, DINOv2, BEiT, InternViT, AugReg.

Facts about InternVisionModel: OpenGVLab/InternViT-6B-224px on the Hugging Face hub, `modeling_intern_vit.py`; about
AugReg's arrays: google-research/vision_transformer, as timm reads them.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from piip.checkpoints.networks.names import Tensors, count_blocks, rename
from piip.serialization.weights import StoredTensor, TensorFacts

LAYER_SCALE = ((r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),)
INTERN_RULES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.ls([12])$", r".ls\1.gamma"),
)
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"

AUGREG_RULES = (
    (r"^cls$", "cls_token"),
    (r"^embedding/", "patch_embed.proj/"),
    (r"^(?:Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"\bLayerNorm_0/", "norm1/"),
    (r"\bLayerNorm_[12]/", "norm2/"),
    (r"\bMlpBlock_\d+/Dense_0/", "mlp.fc1/"),
    (r"\bMlpBlock_\d+/Dense_1/", "mlp.fc2/"),
    (r"\bMultiHeadDotProductAttention_\d+/out/", "attn.proj/"),
    (r"\bMultiHeadDotProductAttention_\d+/(query|key|value)/", r"attn.\1/"),
    (r"/(?:kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
)


def from_timm(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read timm's names, which most publishers use: layer scale is renamed, a shared bias table copied to blocks."""
    # DINOv2's training files count blocks within chunks: blocks.CHUNK.BLOCK.
    renamed = rename(tensors, [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."), *LAYER_SCALE])
    shared = renamed.pop(SHARED_TABLE, None)
    if shared is not None:
        for index in range(count_blocks(renamed)):
            renamed[f"blocks.{index}.attn.relative_position_bias_table"] = shared
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("relative_position_index")}


def from_intern_vision_model(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read the names of Hugging Face's InternVisionModel."""
    return rename(tensors, INTERN_RULES)


def from_augreg(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read the arrays of AugReg's `.npz` files: kernels are transposed, query, key and value joined.

    Raises:
        ValueError: All blocks are stacked in one array, a layout of some programs.
    """
    if any("/encoderblock/" in name for name in tensors):
        raise ValueError("The file stacks all blocks in one array, expected AugReg's layout with one array per block.")
    renamed = rename(tensors, AUGREG_RULES)
    network: dict[str, StoredTensor] = {}
    for name, tensor in renamed.items():
        if not re.search(r"attn\.(query|key|value)\.", name):
            network[name] = _transposed(tensor, joins_heads="attn.proj" in name) if name.endswith(".weight") else tensor
        elif "attn.query." in name:
            parts = [renamed[name.replace("attn.query.", f"attn.{part}.")] for part in ("query", "key", "value")]
            network[name.replace("attn.query.", "attn.qkv.")] = _joined(parts)
    return network


def _transposed(tensor: StoredTensor, *, joins_heads: bool) -> StoredTensor:
    """Return a kernel with its outputs first."""
    shape = tensor.facts.shape
    if len(shape) == 4:  # (H, W, input, output)
        return tensor.reshaped([shape[i] for i in (3, 2, 0, 1)], lambda value: value.permute(3, 2, 0, 1))
    if joins_heads:  # (heads, width, output)
        return tensor.reshaped([shape[2], shape[0] * shape[1]], lambda value: value.flatten(0, 1).T)
    return tensor.reshaped(shape[::-1], lambda value: value.T) if len(shape) == 2 else tensor


def _joined(parts: list[StoredTensor]) -> StoredTensor:
    """Return query, key and value as one: kernels (input, heads, width), biases (heads, width)."""
    shape = parts[0].facts.shape
    width = shape[-2] * shape[-1]
    is_kernel = len(shape) == 3

    def read() -> Tensor:
        values = [part.read() for part in parts]
        return torch.cat([value.flatten(1).T if is_kernel else value.flatten() for value in values])

    joined = (3 * width, shape[0]) if is_kernel else (3 * width,)
    return StoredTensor(TensorFacts(joined, parts[0].facts.dtype), read)
