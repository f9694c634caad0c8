"""Fine-tune a pyramid on folders of images in a plain PyTorch loop.

    python examples/train_pytorch.py DATA OUT --pretrained

DATA has train/CLASS/ and val/CLASS/; `piip predict OUT IMAGES` predicts with the result.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import piip

parser = argparse.ArgumentParser(description="Fine-tune a pyramid on folders of images.")
parser.add_argument("data")
parser.add_argument("out")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--size", type=int, default=192, help="side of the image of the smallest network, in pixels")
parser.add_argument("--pretrained", action="store_true", help="start from timm's weights")
args = parser.parse_args()

# ViT-S sees half the resolution of ViT-T
networks = [("vit_small_patch16_224", args.size // 2), ("vit_tiny_patch16_224", args.size)]
branches = tuple(piip.BranchConfig(name, image_size=size, pretrained=args.pretrained) for name, size in networks)
classes = datasets.ImageFolder(f"{args.data}/train").classes
head = piip.HeadConfig("pooled", num_classes=len(classes))
model = piip.build_model(piip.ModelConfig(branches, head=head))

mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
resize = transforms.Resize((args.size, args.size))
transform = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(mean, std)])
train, val = (
    DataLoader(datasets.ImageFolder(f"{args.data}/{split}", transform), batch_size=16, shuffle=split == "train")
    for split in ("train", "val")
)
device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

for epoch in range(args.epochs):
    model.train()
    for images, labels in train:
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        hits = [model(images.to(device)).argmax(1).cpu() == labels for images, labels in val]
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {torch.cat(hits).float().mean():.3f}")

seen = {"input_size": args.size, "mean": mean, "std": std, "crop_mode": "squash", "crop_pct": 1.0}
model.save_pretrained(args.out, metadata={"classes": classes, "transform": {**seen, "interpolation": "bilinear"}})
