"""Train transformers' UperNet over a pyramid for one step, save it, and load it again."""

import tempfile

import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation

import piip
from piip.integrations.transformers import PiipConfig  # registers the pyramid with AutoConfig and AutoBackbone

branches = (
    piip.BranchConfig("vit_small_patch16_224", image_size=64),
    piip.BranchConfig("vit_tiny_patch16_224", image_size=128),  # pretrained=True loads timm's weights
)
pyramid = PiipConfig(piip.ModelConfig(branches, neck=piip.NeckConfig("simple")))
config = UperNetConfig(
    backbone_config=pyramid, hidden_size=64, auxiliary_in_channels=pyramid.hidden_sizes[2], num_labels=5
)
model = UperNetForSemanticSegmentation(config)

images, labels = torch.randn(2, 3, 128, 192), torch.randint(5, (2, 128, 192))
loss = model(images, labels=labels).loss
loss.backward()
print("loss", round(loss.item(), 2))

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded = UperNetForSemanticSegmentation.from_pretrained(folder)
print("logits", tuple(loaded(images).logits.shape))
