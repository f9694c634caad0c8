"""Random brightness, contrast, saturation and hue, as in the training of the released segmentors."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BRIGHTNESS = 32.0  # grey levels
FACTORS = (0.5, 1.5)  # of contrast and saturation
HUE = 18 / 180  # turns, in both directions


def distorted(image: Tensor) -> Tensor:
    """Return an 8-bit RGB image (3, H, W) with colour distortion; each of the four is applied with probability 1/2.

    Contrast is changed before or after saturation and hue, with equal probability.

    Source:
        mmsegmentation's `PhotoMetricDistortion`, with Pillow's HSV with 256 steps per channel instead of OpenCV's.
    """
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    if random.random() < 0.5:
        pixels = _limited(pixels + random.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = random.random() < 0.5
    if contrast_first:
        pixels = _contrast(pixels)
    pixels = _saturation_and_hue(pixels)
    if not contrast_first:
        pixels = _contrast(pixels)
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)


def _limited(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255).astype(np.uint8).astype(np.float32)  # 8-bit images between all steps


def _contrast(pixels: np.ndarray) -> np.ndarray:
    return _limited(pixels * random.uniform(*FACTORS)) if random.random() < 0.5 else pixels


def _saturation_and_hue(pixels: np.ndarray) -> np.ndarray:
    factor = random.uniform(*FACTORS) if random.random() < 0.5 else 1.0
    turn = random.uniform(-HUE, HUE) if random.random() < 0.5 else 0.0
    if factor == 1 and turn == 0:
        return pixels
    channels = np.asarray(Image.fromarray(pixels.astype(np.uint8)).convert("HSV")).astype(np.float32)
    channels[..., 0] = (channels[..., 0] + round(turn * 256)) % 256
    channels[..., 1] = (channels[..., 1] * factor).clip(0, 255)
    image = Image.fromarray(channels.astype(np.uint8), "HSV").convert("RGB")
    return np.asarray(image).astype(np.float32)
