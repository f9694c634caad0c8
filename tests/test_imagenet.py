"""A classifier of ImageNet-1K knows its classes by the folder names of the validation images."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyramids import tiny_vit
from tiny_run import write_images

import piip
from piip.config import HeadConfig, ModelConfig
from piip.data.imagenet import imagenet_metadata
from piip.zoo import model_config

CONFIG = ModelConfig((tiny_vit(24, 3, 32),), head=HeadConfig("pooled", num_classes=1000), mean=(0.5,) * 3)


def test_metadata_of_a_published_classifier() -> None:
    metadata = imagenet_metadata(model_config("piip_3branch_tsb_368-192-128_cls_token_deit1"))
    classes, transform = metadata["classes"], metadata["transform"]
    assert len(classes) == len({*classes}) == 1000
    assert classes == sorted(classes)  # the order of torchvision's ImageFolder, which the authors read with
    assert (classes[0], classes[1]) == ("n01440764", "n01443537")
    assert (transform["input_size"], transform["crop_pct"], transform["interpolation"]) == (368, 1.0, "bicubic")


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig("pooled", num_classes=10)], ids=["backbone", "ten classes"])
def test_other_models_are_refused(head: HeadConfig) -> None:
    with pytest.raises(ValueError, match="expected a classifier for the 1000 classes"):
        imagenet_metadata(ModelConfig((tiny_vit(24, 3, 32),), head=head))


def test_a_saved_classifier_names_wordnet_ids(tmp_path: Path) -> None:
    metadata = imagenet_metadata(CONFIG)
    piip.build_model(CONFIG).save_pretrained(tmp_path / "model", metadata=metadata)
    pictures = write_images(tmp_path / "pictures", train=0, val=1, classes=("any",))
    predictor = piip.Predictor(tmp_path / "model", device="cpu")
    assert predictor.classes == metadata["classes"]
    assert [row.label in predictor.classes for row in predictor.predict_paths([pictures])] == [True]
