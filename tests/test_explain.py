"""`piip explain`: what is recorded is what the model computes, and taking a branch away is what it says."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyramids import randomise, tiny_pyramid
from tiny_run import CLASSES

from piip.build import build_backbone, build_model
from piip.cli import main
from piip.config import HeadConfig, InteractionConfig, ModelConfig, NeckConfig
from piip.cost import estimate_cost
from piip.data.transforms.classification import TransformConfig, build_transform
from piip.demo.tasks import TASKS
from piip.explain import Explanation, explain_image, write_page
from piip.explain.changes import compare_classes, compare_detections, compare_masks
from piip.explain.removal import without_branch
from piip.inference.predictions import ClassPrediction, InstancePrediction, SemanticPrediction
from piip.layers import attention
from piip.ops.positions import cell_centres
from piip.serialization.save import save_model

NO_NECK = NeckConfig("none")


def transform_of(side: int) -> TransformConfig:
    return TransformConfig(input_size=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)


TRANSFORM = build_transform(transform_of(128), train=False)


def picture(height: int = 70, width: int = 90) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def config(count: int = 2, *, head: str = "pooled", dense: bool = False) -> ModelConfig:
    described = tiny_pyramid(count, neck="none", merge="none" if head == "per_branch" or count == 1 else "linear")
    interaction = InteractionConfig(num_heads=2, attention="dense" if dense else "deformable")
    classes = len(CLASSES) if head != "none" else 0
    wanted = HeadConfig(head, num_classes=classes, pool="mean") if classes else HeadConfig()
    return dataclasses.replace(described, interaction=interaction, head=wanted)


def saved(folder: Path, described: ModelConfig) -> Path:
    model = randomise(build_model(described))
    transform = transform_of(described.branches[-1].image_size)
    save_model(model, folder, {"classes": list(CLASSES), "transform": dataclasses.asdict(transform)})  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("classifier"), config(3))


@pytest.fixture(scope="module")
def explanation(classifier: Path) -> Explanation:
    return explain_image(picture(), classifier)


def test_images_and_costs(explanation: Explanation, classifier: Path) -> None:
    assert [view.size for view in explanation.branches] == [(32, 32), (64, 64), (128, 128)]
    report = estimate_cost(ModelConfig.from_dict(json.loads((classifier / "config.json").read_text())["model"]))
    assert sum(explanation.macs.values()) == report.macs
    assert [view.macs for view in explanation.branches] == [report.parts[f"branch {i}"].macs for i in range(3)]
    assert explanation.branches[1].share == pytest.approx(report.parts["branch 1"].macs / report.macs)
    shown = TRANSFORM(picture()) * 0.5 + 0.5
    pixels = torch.from_numpy(np.array(explanation.branches[-1].image)).permute(2, 0, 1) / 255
    assert (pixels - shown).abs().max() <= 0.5001 / 255


def test_sampling_points_are_those_of_the_forward_pass(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = attention.deformable_attention

    def note(value: Any, grid: Any, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        calls.append((locations.clone(), weights.clone()))
        return original(value, grid, locations, weights)

    monkeypatch.setattr(attention, "deformable_attention", note)
    explanation = explain_image(picture(), classifier, queries=((0.4, 0.6),))
    directions = [(points.interaction, points.source, points.target) for points in explanation.points]
    # highest resolution first, and towards the larger network first
    chain = [(2, 1), (1, 2), (1, 0), (0, 1)]
    assert directions == [(interaction, *pair) for interaction in range(2) for pair in chain]
    for points, (locations, weights) in zip(explanation.points, calls, strict=False):
        queries = locations.shape[1]
        side = int(queries**0.5)
        centres = cell_centres((side, side), torch.device("cpu"))
        nearest = int(torch.cdist(torch.tensor([[0.4, 0.6]]), centres).argmin())
        assert points.queries == pytest.approx(centres[nearest][None].numpy())
        assert points.locations == pytest.approx(locations[:1, nearest].flatten(1, 2).numpy(), abs=1e-6)
        assert points.weights == pytest.approx(weights[:1, nearest].flatten(1).numpy() / 2, abs=1e-6)
        assert points.weights.sum(1) == pytest.approx(1)
        assert points.mean_distance > 0
        assert 0 <= points.outside <= 1


def test_points_outside_the_image_and_distances() -> None:
    from piip.explain.explanation import SamplingPoints

    places = np.array([[[0.5, 0.6], [0.5, -0.2]]])
    points = SamplingPoints(0, 0, 1, np.array([[0.5, 0.5]]), places, np.array([[0.75, 0.25]]), (100, 200))
    assert points.outside == pytest.approx(0.25)
    assert points.mean_distance == pytest.approx(0.75 * 10 + 0.25 * 70)


def test_gates_and_features(explanation: Explanation, classifier: Path) -> None:
    import piip

    backbone = piip.load_model(classifier).get_backbone()
    assert len(explanation.gates) == 2 * 4 * 2  # interactions, directions, kinds
    for gate in explanation.gates:
        unit = backbone.interactions[gate.interaction].units[min(gate.source, gate.target)]
        injector: Any = unit.to_coarse if gate.source > gate.target else unit.to_fine
        values = injector.attention_gate if gate.kind == "attention" else injector.ffn_gate
        assert gate.mean_abs == pytest.approx(values.detach().abs().mean().item())
    assert [(each.interaction, each.branch) for each in explanation.features] == [
        (interaction, branch) for interaction in range(2) for branch in range(3)
    ]
    for each in explanation.features:
        assert each.before.shape == each.after.shape == (*each.change.shape, 3)
        assert each.change.min() > 0
        assert (each.before != each.after).any()
        assert 0 < each.explained <= 1


def test_closed_gates_change_nothing() -> None:
    model = build_model(config(2))  # gates start at zero
    explanation = explain_image(picture(), model)  # type: ignore[arg-type]
    assert all(gate.mean_abs == 0 for gate in explanation.gates)
    for each in explanation.features:
        assert not each.change.any()
        assert (each.before == each.after).all()
    assert explanation.prediction is None
    assert "in memory" in explanation.notes[0]


@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("head", ["pooled", "per_branch"])
def test_a_branch_is_taken_away(head: str, branch: int) -> None:
    """The hooks give what parameters of zero give, and leave nothing behind."""
    model: Any = randomise(build_model(config(3, head=head)))
    image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = model(image)
        with without_branch(model, branch):
            removed = model(image)
        assert torch.equal(model(image), before)
        for interaction in model.backbone.interactions:
            for pair, unit in enumerate(interaction.units):
                if branch in (pair, pair + 1):
                    for injector in (unit.to_coarse, unit.to_fine):
                        injector.attention_gate.zero_()
                        injector.ffn_gate.zero_()
        if head == "pooled":
            model.backbone.merge.scales[branch].zero_()
            expected = model(image)
        else:
            features = model.forward_features(image)
            logits = [fc(each.patches.mean(1)) for fc, each in zip(model.head.fcs, features, strict=True)]
            expected = torch.stack([each for index, each in enumerate(logits) if index != branch]).mean(0)
    torch.testing.assert_close(removed, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(removed, before, atol=1e-3)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_results_without_branches(explanation: Explanation) -> None:
    assert [removal.branch for removal in explanation.removals] == [0, 1, 2]
    result: Any = explanation.prediction
    for removal in explanation.removals:
        assert removal.change.values["before"] == result.score
        assert removal.change.values["after"] == dict(removal.prediction.top)[result.label]  # type: ignore[attr-defined]


def test_one_branch_exchanges_nothing(tmp_path: Path) -> None:
    explanation = explain_image(picture(), saved(tmp_path / "model", config(1)))
    assert (explanation.points, explanation.gates, explanation.removals) == ([], [], [])
    assert explanation.interactions == 0
    assert "nothing is exchanged" in explanation.notes[-1]
    assert explanation.prediction is not None
    files = write_page(explanation, tmp_path / "page")
    assert [path.name for path in files[2:]] == ["images.png", "features.png"]
    assert "nothing is exchanged" in files[0].read_text()


def test_dense_attention_has_no_points(tmp_path: Path) -> None:
    explanation = explain_image(picture(), saved(tmp_path / "model", config(2, head="per_branch", dense=True)))
    assert explanation.points == []
    assert "no sampling points" in explanation.notes[-1]
    assert len(explanation.removals) == 2
    assert explanation.gates


def test_a_saved_backbone_has_no_result(tmp_path: Path) -> None:
    backbone = randomise(build_backbone(config(2, head="none")))
    save_model(backbone, tmp_path / "model")  # type: ignore[arg-type]
    explanation = explain_image(np.asarray(picture(200, 90)), tmp_path / "model")
    assert explanation.prediction is None
    assert explanation.branches[-1].size == (64, 64)
    assert "central square" in explanation.notes[0]
    assert explanation.to_dict()["result"] is None


def test_changes_in_the_terms_of_the_task() -> None:
    first = ClassPrediction(None, "a", 0.7, (("a", 0.7), ("b", 0.3)))
    second = ClassPrediction(None, "b", 0.9, (("b", 0.9), ("a", 0.1)))
    change = compare_classes(first, second)
    assert change.amount == pytest.approx(0.6)
    assert change.text == "a: 70.0% becomes 10.0%; most probable is b with 90.0%"
    assert compare_classes(second, second).amount == 0

    def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> InstancePrediction:
        return InstancePrediction(
            None, (50, 50), ("a", "b"), torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels)
        )

    found = detections([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 9, 9]], [0.9, 0.8, 0.2], [0, 0, 0])
    # the first one moved a little; the second has another class; the last one is below the threshold
    other = detections([[1, 0, 11, 10], [20, 20, 30, 30], [40, 40, 45, 45]], [0.9, 0.8, 0.3], [0, 1, 0])
    change = compare_detections(found, other)
    assert change.values == {"kept": 1, "lost": 1, "new": 1}
    assert change.amount == 0.5
    nothing = detections([], [], [])
    assert compare_detections(found, nothing).values == {"kept": 0, "lost": 2, "new": 0}
    assert compare_detections(nothing, nothing).amount == 0
    twice = detections([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])  # one object matches one
    assert compare_detections(twice, found).values == {"kept": 1, "lost": 1, "new": 1}

    masks = [SemanticPrediction(None, ("x", "y"), torch.tensor([[0, 0], [1, last]])) for last in (0, 1)]
    change = compare_masks(*masks)
    assert (change.amount, change.text) == (0.25, "25.0% of the pixels change class, most often x to y")
    assert compare_masks(masks[0], masks[0]).text == "0.0% of the pixels change class"


def test_the_page_of_the_shipped_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "<cells>.png"
    with Image.open(TASKS["instances"].assets / "images" / "nuclei_3f9fc8e6.png") as whole:
        whole.convert("RGB").crop((100, 100, 228, 196)).save(image)
    main(["explain", str(image), "--out", str(tmp_path / "page"), "--device", "cpu", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["result"]["count"] > 3
    lost = [each["lost"] for each in values["without"]]
    assert len(lost) == 2
    assert max(lost) > 0
    assert [Path(path).name for path in values["files"]] == [
        "explain.html",
        "explain.png",
        *(f"{name}.png" for name in ("images", "points", "features", "gates", "removals")),
    ]
    page = Path(values["files"][0]).read_text()
    assert "&lt;cells&gt;" in page
    assert "<cells>" not in page
    assert page.count("<img") == 5
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)', page))
    with Image.open(values["files"][1]) as sheet:
        assert sheet.width > 1000
        assert sheet.height > 2000


@pytest.mark.slow
def test_the_shipped_segmentor(tmp_path: Path) -> None:
    folder = TASKS["segmentation"].assets
    with Image.open(folder / "images" / "y0000_x1312.jpg") as whole:
        explanation = explain_image(whole.crop((0, 100, 128, 228)), folder / "model")
    assert len(explanation.removals) == 2
    assert all(0 <= removal.change.amount <= 1 for removal in explanation.removals)
    write_page(explanation, tmp_path)
    assert (tmp_path / "removals.png").is_file()


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for arguments, message in (
        ([str(tmp_path / "broken.png")], "cannot be read"),
        ([str(tmp_path / "missing.png")], "missing.png cannot be read"),
        ([str(tmp_path / "broken.png"), "--model", str(tmp_path)], "has no config.json"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["explain", *arguments, "--out", str(tmp_path / "page")])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    with pytest.raises(ValueError, match=r"queries is .* expected positions"):
        explain_image(picture(), queries=((0.5, 1.5),))
    with pytest.raises(ValueError, match="2 images, expected one"):
        explain_image([picture(), picture()])  # type: ignore[arg-type]
