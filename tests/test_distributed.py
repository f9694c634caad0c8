"""Runs of several processes, compared with one process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shapes
import torch
from processes import run_processes
from tiny_run import recipe_values, tiny_recipe, write_images
from torch import Tensor
from training_run import losses, run

from piip.recipe import Recipe
from piip.serialization.load import load_model
from piip.training.callbacks import StepSeed
from piip.training.prepare import prepare
from piip.training.sharding import clip_gradients

HEADS = {"mask_rcnn": "coco", "dino": "coco", "upernet": "semantic_masks"}


def dense_values(root: Path, head: str) -> dict[str, Any]:
    """Write eight images and return a recipe that draws no random numbers outside the data and the heads."""
    kind = HEADS[head]
    for split, count in (("train", 8), ("val", 2)):
        write = shapes.write_coco if kind == "coco" else shapes.write_semantic_masks
        write(root, split, count, seed=count)
    values = shapes.dense_recipe(root, root / "run", kind)
    values["optim"]["lr"] = 1e-4  # Adam turns rounding of gradients near 0 into whole steps
    values["model"]["head"] |= {"kind": head, "width": 64}
    return values


class SharedCounts:
    """Stands in for `mean_count` where one process computes both halves, each twice: first to count."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = [[], []]
        self.rank = 0
        self.shared = False
        self.asked = 0

    def __call__(self, count: int, device: torch.device) -> Tensor:
        if not self.shared:
            self.counts[self.rank].append(count)
            return torch.ones(())
        self.asked += 1
        return torch.tensor(float(sum(counts[self.asked - 1] for counts in self.counts))).div(2).clamp(min=1)


def train_on_halves(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Train in this process on the two half-batches in turn; return the losses of each half."""
    recipe = Recipe.from_dict(values)
    halves = [prepare(recipe, None, replicas=2, on_gpu=False) for _ in range(2)]
    task = halves[0].task.train()
    optimizer, schedule = task.configure(task.model)
    seen: list[list[float]] = [[], []]
    for rank, half in enumerate(halves):
        half.loader.order.share(rank, 2)
    for epoch in range(recipe.schedule.epochs):
        for half in halves:
            half.loader.order.set_epoch(epoch)
        for index, batches in enumerate(zip(*(half.loader for half in halves), strict=True)):
            counts = SharedCounts()
            monkeypatch.setattr("piip.heads.dino.head.mean_count", counts)
            for counts.shared in (False, True):
                optimizer.zero_grad()
                for counts.rank, batch in enumerate(batches):
                    counts.asked = 0
                    place: Any = SimpleNamespace(current_epoch=epoch, global_rank=counts.rank)
                    StepSeed(recipe.run.seed).on_train_batch_start(place, task, batch, index)
                    parts = task.model(batch.image, batch.image_infos, batch.targets)
                    loss = torch.stack([value for name, value in parts.items() if "loss" in name]).sum()
                    (loss / 2).backward()
                    if counts.shared:
                        seen[counts.rank].append(loss.item())
            assert recipe.optim.clip is not None
            clip_gradients(task.model, recipe.optim.clip)
            optimizer.step()
            schedule.step()
    monkeypatch.undo()
    return seen


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_whole_batch(strategy: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=8)
    alone = tiny_recipe(images, tmp_path / "alone", data={"batch_size": 4})
    run(alone)
    values = recipe_values(images, tmp_path / "run", data={"batch_size": 2}, run={"strategy": strategy})
    first, second = run_processes(values, tmp_path / "seen")
    together = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert len(together) == 12
    assert together == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert first["losses"] != second["losses"]
    if strategy == "ddp":
        assert_same_weights(first["weights"], second["weights"])
    alone_model, model = (load_model(tmp_path / name / "model") for name in ("alone", "run"))
    assert model.state_dict().keys() == alone_model.state_dict().keys()


@pytest.mark.parametrize(
    ("head", "strategy"),
    [
        ("mask_rcnn", "fsdp2"),
        *(
            pytest.param(head, strategy, marks=pytest.mark.slow)
            for head, strategy in (
                ("mask_rcnn", "ddp"),
                ("dino", "ddp"),
                ("dino", "fsdp2"),
                ("upernet", "ddp"),
                ("upernet", "fsdp2"),
            )
        ),
    ],
)
def test_two_processes_equal_the_mean_of_half_batches(
    head: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = dense_values(tmp_path, head)
    expected = train_on_halves(values, monkeypatch)
    values["run"]["strategy"] = strategy
    seen = run_processes(values, tmp_path / "seen")
    for process, half in zip(seen, expected, strict=True):
        assert len(half) == 4
        assert process["losses"][0] == pytest.approx(half[0], rel=1e-5)
        # statistics of two numbers, as BatchNorm has them here over pooled maps, turn rounding into signs
        assert process["losses"] == pytest.approx(half, rel=5e-3 if head == "upernet" else 1e-4)
    if strategy == "ddp":
        trained = [{k: v for k, v in p["weights"].items() if "running_" not in k} for p in seen]
        assert_same_weights(*trained)
    assert load_model(tmp_path / "run" / "model").config.head.kind == head


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_machines_train_together_and_resume(strategy: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=8)
    values = recipe_values(images, tmp_path / "run", data={"batch_size": 2}, run={"strategy": strategy})
    whole = run_processes(values, tmp_path / "seen", processes=1, nodes=2)
    assert len(whole[0]["losses"]) == 12
    (tmp_path / "run" / "checkpoints" / "step00000012.ckpt").unlink()
    resumed = run_processes(values, tmp_path / "resumed", "--resume", "auto", processes=1, nodes=2)
    for before, after in zip(whole, resumed, strict=True):
        assert after["losses"] == before["losses"][6:]
    assert_same_weights(whole[0]["weights"], resumed[0]["weights"])
