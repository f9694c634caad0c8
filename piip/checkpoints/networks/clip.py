"""CLIP's image networks, brought to the names of Hugging Face's CLIPVisionModel.

Facts: huggingface/transformers `modeling_clip.py`, openai/CLIP `model.py`, timm's `vit_*_clip_*`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from piip.checkpoints.networks.names import Tensors, rename
from piip.serialization.weights import StoredTensor

OPENAI_RULES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.in_proj_(weight|bias)$", r".self_attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
TIMM_RULES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm_pre\.", "pre_layrnorm."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
)
FLAT = {"embeddings.class_embedding": 1, "embeddings.position_embedding.weight": 2}  # dimensions


def from_hugging_face(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read the names of CLIPVisionModel, which are the wanted ones."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}


def from_openai(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read the names of OpenAI and OpenCLIP below `visual.`."""
    return dict(_split_heads(rename(tensors, OPENAI_RULES)))


def from_timm(tensors: Tensors) -> dict[str, StoredTensor]:
    """Read timm's names."""
    return dict(_split_heads(rename(tensors, TIMM_RULES)))


def _split_heads(tensors: Tensors) -> Iterator[tuple[str, StoredTensor]]:
    """Cut joined projections into query, key and value, and take leading ones off the tables' shapes."""
    for name, tensor in tensors.items():
        shape = tensor.facts.shape
        if ".self_attn.qkv." in name:
            third = shape[0] // 3
            for index, part in enumerate("qkv"):
                cut = partial(_rows, start=index * third, stop=(index + 1) * third)
                yield name.replace(".qkv.", f".{part}_proj."), tensor.reshaped((third, *shape[1:]), cut)
        elif len(shape) > FLAT.get(name, len(shape)):
            flat = shape[len(shape) - FLAT[name] :]
            yield name, tensor.reshaped(flat, partial(torch.reshape, shape=flat))
        else:
            yield name, tensor


def _rows(value: Tensor, *, start: int, stop: int) -> Tensor:
    return value[start:stop]
