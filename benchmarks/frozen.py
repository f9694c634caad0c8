"""What does a frozen branch save in a training step? A small ViT pyramid with and without.

    python benchmarks/frozen.py [--frozen 0] [--batch 4] [--repeats 3]

Forward, backward and AdamW step of PIIP-TSB for classification, float32. Every row is measured in a process of its own:
the minimum of the processor seconds per step, which other programs disturb least, and the peak resident memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch
from common.measuring import in_own_process
from common.progress import say

import piip
from piip.bench.worker import peak_resident_bytes
from piip.build import build_model
from piip.zoo.create import model_config

NAME = "piip_tsb_368_192_128.deit1_in1k"


def measure(frozen: list[int], batch: int, repeats: int) -> tuple[float, int, int]:
    """Return seconds per step, peak bytes and the number of trained parameters."""
    torch.set_num_threads(1)
    config = model_config(NAME)
    branches = [dataclasses.replace(branch, frozen=i in frozen) for i, branch in enumerate(config.branches)]
    model: piip.PIIPClassifier = build_model(dataclasses.replace(config, branches=tuple(branches))).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    image = torch.randn(batch, 3, config.branches[-1].image_size, config.branches[-1].image_size)
    seconds = []
    for _ in range(repeats + 1):  # the first step makes the optimiser's state
        start = time.process_time()
        model(image).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - start)
    return min(seconds[1:]), peak_resident_bytes(), sum(parameter.numel() for parameter in trained)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frozen", nargs="+", type=int, default=[0], help="branches; 0 is the largest network")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    for frozen in ([], given.frozen):
        seconds, peak, trained = in_own_process(measure, frozen, given.batch, given.repeats)
        say(f"frozen {frozen or 'none'}: {trained / 1e6:.1f} M trained, {seconds:.2f} s, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
