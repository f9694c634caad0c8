"""Train a U-Net of segmentation_models_pytorch over a pyramid for one step."""

import segmentation_models_pytorch as smp
import torch

import piip
from piip.integrations.smp import PiipDPT, register_encoder

branches = (
    piip.BranchConfig("vit_small_patch16_224", image_size=64),
    piip.BranchConfig("vit_tiny_patch16_224", image_size=128),  # pretrained=True loads timm's weights
)
register_encoder("piip-ts", piip.ModelConfig(branches, neck=piip.NeckConfig("simple")))
images, labels = torch.randn(2, 3, 128, 96), torch.randint(5, (2, 128, 96))

unet = smp.Unet("piip-ts", encoder_weights=None, decoder_channels=(64, 32, 32, 16, 16), classes=5)
print("strides of the encoder's maps have channels", unet.encoder.out_channels)
dpt = PiipDPT("piip-ts", decoder_intermediate_channels=(64, 64, 64, 64), decoder_fusion_channels=32, classes=5)
for model in (unet, dpt):
    logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    print(model.name, tuple(logits.shape), round(loss.item(), 2))
