"""Layer-wise learning rate decay of the authors' optimiser.

Our own rule (`piip.training.optim`) is the default for new models: it treats all families equally and counts from the
end of each branch. This one is for reproducing a released run.
"""

from __future__ import annotations

import re

from piip.checkpoints.official import INDEX_BUFFERS, build_released, official_shapes
from piip.device import without_values
from piip.zoo.create import model_config, official_record

PLAIN_RATE, SLOW_RATE, MIXED_RATE = 0.85, 0.95, 0.8  # pyramids; single networks and segmentors; with ConvNeXt
MIXED_LAYERS = 12
EMBEDDINGS = ("pos_embed", "cls_token", "mask_token", "visual_embed", "patch_embed")
STATISTICS = (*INDEX_BUFFERS, "running_mean", "running_var")


def official_lr_scale(name: str) -> dict[str, float]:
    """Return the factor on the learning rate of every parameter of a released detector or segmentor.

    `rate ** (layers + 1 - id)`: embeddings have id 0, block k of a branch (k + 1) times the ratio of the largest
    network's depth to the branch's, everything else layers + 1.

    parity: ids are cut to whole numbers, and ConvNeXt branches match no pattern: all their layers learn at full rate.

    Args:
        name: Our name or that of the official record.

    Returns:
        Factors by the names of the authors' whole files, "backbone." before those of the backbone.

    Raises:
        ValueError: A model that was not trained with this rule.
    """
    record = official_record(name)
    config = model_config(record)
    if not config.head.is_dense and "dino" not in record:
        raise ValueError(f"{name} was not trained with layer-wise decay: only detectors and segmentors were.")
    with without_values():
        backbone, whole = build_released(record), build_released(record, with_head=True)
    inside, names = official_shapes(backbone), official_shapes(whole)
    mixed = any(branch.cut == "blocks" for branch in config.branches)
    depths = [branch.depth if branch.is_decayed_officially else None for branch in backbone.get_backbone().branches]
    layers = MIXED_LAYERS if mixed else depths[0] or MIXED_LAYERS
    slow = len(depths) == 1 or config.head.kind == "upernet"
    rate = MIXED_RATE if mixed else SLOW_RATE if slow else PLAIN_RATE
    scales = {}
    for key in names:
        if not key.endswith(STATISTICS):
            full = f"backbone.{key}" if key in inside else key
            identity = layers + 1 if len(depths) == 1 and mixed else _identity(key, inside, depths, layers)
            scales[full] = rate ** (layers + 1 - identity)
    return scales


def _identity(key: str, inside: dict[str, tuple[int, ...]], depths: list[int | None], layers: int) -> int:
    """Return the layer id of an official parameter name, without "backbone."."""
    if key not in inside:
        return layers + 1
    found = re.match(r"branch(\d+)\.", key)
    rest = key[found.end() :] if found else key
    depth = depths[int(found.group(1)) - 1] if found else depths[0]
    if rest.startswith(EMBEDDINGS):
        return 0
    block = re.match(r"(?:blocks|layers)\.(\d+)\.", rest)
    if block is None or depth is None or (found is None and len(depths) > 1):
        return layers + 1
    return int((int(block.group(1)) + 1) * layers / depth)
