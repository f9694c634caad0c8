"""Writing timm's networks under the names of their publishers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def augreg_arrays(network: nn.Module, heads: int) -> dict[str, np.ndarray]:
    """Write a timm ViT as AugReg's files are written."""
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(network.blocks)):
        theirs, ours = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        width = state[f"{ours}.norm1.weight"].shape[0]
        for norm, place in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{theirs}/{norm}/scale"] = state[f"{ours}.{place}.weight"]
            arrays[f"{theirs}/{norm}/bias"] = state[f"{ours}.{place}.bias"]
        for layer, place in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            arrays[f"{theirs}/MlpBlock_3/{layer}/kernel"] = state[f"{ours}.mlp.{place}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/{layer}/bias"] = state[f"{ours}.mlp.{place}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights = state[f"{ours}.attn.qkv.weight"].reshape(3, heads, width // heads, width)
        biases = state[f"{ours}.attn.qkv.bias"].reshape(3, heads, width // heads)
        for number, part in enumerate(("query", "key", "value")):
            arrays[f"{attention}/{part}/kernel"] = weights[number].transpose(2, 0, 1)
            arrays[f"{attention}/{part}/bias"] = biases[number]
        out = state[f"{ours}.attn.proj.weight"].T.reshape(heads, width // heads, width)
        arrays[f"{attention}/out/kernel"], arrays[f"{attention}/out/bias"] = out, state[f"{ours}.attn.proj.bias"]
    return arrays


def to_intern_vision_model(state: State) -> State:
    """Write InternViT's own names as Hugging Face's InternVisionModel has them."""
    renamed = {}
    for name, value in state.items():
        name = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding"}.get(name, name)
        name = name.replace("patch_embed.proj.", "embeddings.patch_embedding.").replace("blocks.", "encoder.layers.")
        renamed[name.removesuffix(".gamma") if ".ls" in name else name] = value
    return renamed


def to_openai(state: State) -> State:
    """Write timm's CLIP as OpenAI has it."""
    words = {
        "patch_embed.proj.weight": "conv1.weight", "norm_pre.": "ln_pre.", "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.", ".norm2.": ".ln_2.", ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.",
        ".attn.qkv.weight": ".attn.in_proj_weight", ".attn.qkv.bias": ".attn.in_proj_bias",
        ".attn.proj.": ".attn.out_proj.",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        if name.startswith(("norm.", "head.")):
            continue
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    renamed["class_embedding"] = renamed.pop("cls_token")[0, 0]
    renamed["positional_embedding"] = renamed.pop("pos_embed")[0]
    renamed["ln_post.weight"], renamed["ln_post.bias"] = state["norm.weight"], state["norm.bias"]
    renamed["proj"] = torch.zeros(64, 8)
    return {f"visual.{name}": value for name, value in renamed.items()} | {"token_embedding.weight": torch.zeros(2)}


def to_clip_vision_model(state: State) -> State:
    """Write timm's CLIP as Hugging Face's CLIPModel has it."""
    renamed = {"embeddings.position_ids": torch.arange(17)[None]}
    words = {
        "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding.weight",
        "patch_embed.proj.": "embeddings.patch_embedding.", "norm_pre.": "pre_layrnorm.",
        "blocks.": "encoder.layers.", ".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.",
        ".attn.proj.": ".self_attn.out_proj.",
    }  # fmt: skip
    for name, value in state.items():
        if name.startswith("head."):
            continue
        name = name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = third
        else:
            renamed[name] = (
                value[0, 0] if "class_embedding" in name else value[0] if "position_embed" in name else value
            )
    model = {f"vision_model.{name}": value for name, value in renamed.items()}
    return model | {"text_model.final_layer_norm.weight": torch.zeros(2), "logit_scale": torch.zeros(())}


def to_authors_convnext(state: State) -> State:
    """Write timm's ConvNeXt as its authors have it."""
    words = {
        "head.norm.": "norm.", "head.fc.": "head.", ".blocks.": ".", ".conv_dw.": ".dwconv.", ".mlp.fc1.": ".pwconv1.",
        ".mlp.fc2.": ".pwconv2.", "stem.": "downsample_layers.0.",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        if ".downsample." in name:
            name = name.replace("stages.", "downsample_layers.").replace(".downsample.", ".")
        renamed[name] = value
    return renamed


def to_convnext_model(state: State) -> State:
    """Write timm's ConvNeXt as Hugging Face's ConvNextForImageClassification has it."""
    words = {
        "head.norm.": "layernorm.", "stem.0.": "embeddings.patch_embeddings.", "stem.1.": "embeddings.layernorm.",
        "stages.": "encoder.stages.", ".blocks.": ".layers.", ".conv_dw.": ".dwconv.", ".mlp.fc1.": ".pwconv1.",
        ".mlp.fc2.": ".pwconv2.", ".gamma": ".layer_scale_parameter", ".downsample.": ".downsampling_layer.",
        ".norm.": ".layernorm.",
    }  # fmt: skip
    renamed = {"classifier.weight": state["head.fc.weight"], "classifier.bias": state["head.fc.bias"]}
    for name, value in state.items():
        if name.startswith("head.fc."):
            continue
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        renamed[f"convnext.{name}"] = value
    return renamed


def to_conv_mlp(state: State) -> State:
    """Write linear layers as 1x1 convolutions, below OpenCLIP's prefix."""
    state = {
        name: value[..., None, None] if ".mlp.fc" in name and value.dim() == 2 else value
        for name, value in state.items()
    }
    return {f"visual.trunk.{name}": value for name, value in state.items()}
