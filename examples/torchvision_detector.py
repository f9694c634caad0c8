"""Train torchvision's Mask R-CNN over a pyramid for one step, and predict."""

import torch
from torchvision.models.detection import MaskRCNN

import piip
from piip.integrations.torchvision import detection_backbone

branches = (
    piip.BranchConfig("vit_small_patch16_224", image_size=64),
    piip.BranchConfig("vit_tiny_patch16_224", image_size=128),  # pretrained=True loads timm's weights
)
pyramid = piip.build_backbone(piip.ModelConfig(branches, neck=piip.NeckConfig("simple")))
backbone = detection_backbone(pyramid, out_channels=64)
normalization = {"image_mean": backbone.image_mean, "image_std": backbone.image_std}
detector = MaskRCNN(backbone, num_classes=3, min_size=128, max_size=192, box_detections_per_img=10, **normalization)

images = [torch.rand(3, 100, 140), torch.rand(3, 130, 90)]  # RGB in [0, 1], any sizes
target = {"boxes": torch.tensor([[10.0, 10, 60, 70]]), "labels": torch.tensor([1])}
targets = [{**target, "masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8)} for image in images]

losses = detector.train()(images, targets)
sum(losses.values()).backward()
print({name: round(loss.item(), 2) for name, loss in losses.items()})
for prediction in detector.eval()(images):
    print(len(prediction["boxes"]), "boxes")
