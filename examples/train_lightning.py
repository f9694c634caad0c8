"""Fine-tune a pyramid on folders of images with PyTorch Lightning.

    python examples/train_lightning.py DATA OUT --epochs 5

DATA has train/CLASS/ and val/CLASS/; `piip.from_pretrained(OUT)` loads the result.
"""

import argparse

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import piip


class FineTuning(pl.LightningModule):
    """A pyramid that learns classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss."""
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4, weight_decay=0.05)


parser = argparse.ArgumentParser(description="Fine-tune a pyramid with PyTorch Lightning.")
parser.add_argument("data")
parser.add_argument("out")
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

networks = [("vit_small_patch16_224", 32), ("vit_tiny_patch16_224", 64)]  # pretrained=True loads timm's weights
branches = tuple(piip.BranchConfig(name, image_size=size) for name, size in networks)
classes = datasets.ImageFolder(f"{args.data}/train").classes
model = piip.build_model(piip.ModelConfig(branches, head=piip.HeadConfig("pooled", num_classes=len(classes))))
normalize = transforms.Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
transform = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor(), normalize])
train, val = (DataLoader(datasets.ImageFolder(f"{args.data}/{split}", transform), 16) for split in ("train", "val"))

trainer = pl.Trainer(max_epochs=args.epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(FineTuning(model), train, val)
print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
model.save_pretrained(args.out, metadata={"classes": classes})
