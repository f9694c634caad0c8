"""Use a pyramid where code expects timm's `features_only` models, and look at intermediate maps."""

import torch
from timm.data import create_transform, resolve_data_config

import piip

name = "piip_tsb_368_192_128.deit1_in1k"
levels = {"merge": {"kind": "slim"}, "neck": {"kind": "simple"}}  # without these: one map per network
model = piip.create_model(name, features_only=True, **levels)
print("channels", model.feature_info.channels(), "strides", model.feature_info.reduction())

config = resolve_data_config(model.pretrained_cfg)  # mean, std and size of its images
transform = create_transform(**config, is_training=False)
print(transform)

images = torch.randn(1, 3, 128, 192)
for info, feature_map in zip(model.feature_info, model(images), strict=True):
    print(info["module"], tuple(feature_map.shape))

features, maps = model.forward_intermediates(images, indices=[-2, -1])  # two maps of those above
print([tuple(feature_map.shape) for feature_map in maps])

# the largest network, after its last two stages, with its class tokens
stages = model.forward_intermediates(images, 2, return_prefix_tokens=True, intermediates_only=True, branch=0)
print([(tuple(feature_map.shape), tuple(tokens.shape)) for feature_map, tokens in stages])
