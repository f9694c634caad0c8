"""Big pictures in tiles: the same objects as in the whole picture, each once; averaged classes; bounded memory."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from faster_coco_eval.core import mask as coder
from PIL import Image
from tiny_run import write_model
from torch import Tensor

import piip
from piip.build import build_model
from piip.cli import main
from piip.config import ModelConfig
from piip.data.transforms.dense import DenseTransformConfig
from piip.inference.compact_masks import CompactMask, Region
from piip.inference.dense_predictor import DetectionPredictor, load_dense_predictor
from piip.inference.predictions import InstancePrediction, SemanticPrediction
from piip.inference.tiling import Detection, Tiling, merge_detections, tile_detections, tiled_labels, whole_within
from piip.serialization.save import save_model

Object = tuple[int, np.ndarray]  # class and mask (H, W)
SHAPE = (230, 310)


def disc(y: int, x: int, radius: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - y, columns - x) <= radius


def block(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def scattered(seed: int) -> list[Object]:
    """Objects of two classes that do not touch, none larger than 31 pixels."""
    rng = np.random.default_rng(seed)
    found: list[Object] = []
    taken = np.zeros(SHAPE, bool)
    for number in range(200):
        radius = int(rng.integers(3, 16))
        mask = disc(int(rng.integers(0, SHAPE[0])), int(rng.integers(0, SHAPE[1])), radius)
        if not (mask & taken).any():
            taken |= mask
            found.append((number % 2, mask))
    return found


def detect(objects: Sequence[Object], tile: Region, score: Callable[[int], float], with_masks: bool) -> dict[str, Any]:
    """A detector that sees every object in a tile exactly, as far as it reaches into the tile."""
    seen: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": [], "masks": []}
    for number, (label, whole) in enumerate(objects):
        mask = whole[tile.top : tile.bottom, tile.left : tile.right]
        if mask.any():
            rows, columns = mask.nonzero()
            seen["boxes"].append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            seen["scores"].append(score(number))
            seen["labels"].append(label)
            seen["masks"].append(mask)
    boxes = torch.tensor(np.array(seen["boxes"]), dtype=torch.float32).view(-1, 4)
    values = {"boxes": boxes, "scores": torch.tensor(seen["scores"]), "labels": torch.tensor(seen["labels"]).long()}
    if with_masks:
        shape = (tile.bottom - tile.top, tile.right - tile.left)
        values["masks"] = torch.from_numpy(np.array(seen["masks"], bool).reshape(-1, *shape))
    return values


def in_tiles(
    objects: Sequence[Object],
    tiling: Tiling,
    *,
    score: Callable[[int], float] = lambda number: 0.9 - number / 1000,
    with_masks: bool = True,
) -> list[Detection]:
    found: list[Detection] = []
    for tile in tiling.tiles(SHAPE):
        found += tile_detections(detect(objects, tile, score, with_masks), tile, SHAPE)
    return merge_detections(found, tiling.tiles(SHAPE), SHAPE)


def as_set(objects: Sequence[Detection]) -> set[Any]:
    return {
        (each.label, *each.box, None if each.mask is None else each.mask.whole(SHAPE).tobytes()) for each in objects
    }


def whole_picture(objects: Sequence[Object], *, with_masks: bool = True) -> list[Detection]:
    tile = Region(0, 0, SHAPE[1], SHAPE[0])
    return tile_detections(detect(objects, tile, lambda number: 0.9, with_masks), tile, SHAPE)


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize(
    ("side", "overlap"), [(128, 0.25), (100, 0.33), (96, 0.5), (64, 0.75), (229, 0.2), (310, 0.25)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_tiles_show_what_the_whole_picture_shows(side: int, overlap: float, seed: int, with_masks: bool) -> None:
    objects = scattered(seed)
    found = in_tiles(objects, Tiling(side, overlap), with_masks=with_masks)
    assert len(found) == len(objects)
    assert as_set(found) == as_set(whole_picture(objects, with_masks=with_masks))
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


@pytest.mark.parametrize("with_masks", [True, False])
def test_objects_larger_than_the_overlap_or_a_tile_are_put_together(with_masks: bool) -> None:
    """Seen whole by no tile: a long bar across all tiles, a disc at a corner of four, an L around a corner."""
    bent = block(150, 10, 160, 200) | block(150, 190, 220, 200)
    objects: list[Object] = [(0, block(20, 5, 32, 305)), (1, disc(100, 100, 45)), (0, bent), (1, disc(190, 60, 6))]
    found = in_tiles(objects, Tiling(96, 0.25), with_masks=with_masks)
    assert as_set(found) == as_set(whole_picture(objects, with_masks=with_masks))


def test_what_a_tile_sees_whole_wins_over_surer_fragments() -> None:
    objects: list[Object] = [(0, disc(60, 96, 12))]
    tiling = Tiling(96, 0.25)  # its border runs through the disc
    found = []
    for tile in tiling.tiles(SHAPE):
        for each in tile_detections(detect(objects, tile, lambda number: 0.5, True), tile, SHAPE):
            found.append(dataclasses.replace(each, score=0.99 if each.is_cut else 0.4))
    assert any(each.is_cut for each in found)
    (kept,) = merge_detections(found, tiling.tiles(SHAPE), SHAPE)
    assert kept.score == 0.4
    assert as_set([kept]) == as_set(whole_picture(objects))


def test_neighbours_and_small_objects_within_large_ones_stay_apart() -> None:
    objects: list[Object] = [
        (0, block(60, 84, 80, 90)),
        (0, block(60, 90, 80, 96)),  # side by side, one class
        (1, block(60, 84, 80, 90)),  # another class in the same place
        (0, disc(150, 84, 11)),
        (0, disc(150, 84, 4)),  # in the middle of the one before
    ]
    found = in_tiles(objects, Tiling(96, 0.4))
    assert as_set(found) == as_set(whole_picture(objects))


def test_the_tile_that_sees_a_place_whole_decides() -> None:
    """A part at a border stays only where no other tile sees it better."""
    objects: list[Object] = [(0, disc(60, 96, 12)), (0, block(120, 20, 140, 300))]
    tiling = Tiling(96, 0.25)
    tiles = tiling.tiles(SHAPE)
    found = tile_detections(detect(objects, tiles[0], lambda number: 0.9, True), tiles[0], SHAPE)
    assert [each.box[2] for each in merge_detections(found, tiles[:1], SHAPE)] == [96]
    assert merge_detections(found, tiles, SHAPE) == []
    fifth = tile_detections(detect(objects, tiles[5], lambda number: 0.9, True), tiles[5], SHAPE)
    assert [each.box for each in merge_detections(fifth, tiles, SHAPE)] == [(72, 120, 168, 140)]  # as far as it reaches


@pytest.mark.parametrize("with_masks", [True, False])
def test_inexact_detectors_find_nothing_twice(with_masks: bool) -> None:
    """Boxes are off by about a pixel, another way in every tile, and scores differ from tile to tile."""
    objects = [each for each in scattered(4) if each[1].sum() > 300]
    tiling = Tiling(128, 0.4)
    rng = np.random.default_rng(0)
    found: list[Detection] = []
    for tile in tiling.tiles(SHAPE):
        for each in tile_detections(detect(objects, tile, lambda number: 0.9, with_masks), tile, SHAPE):
            left, top, right, bottom = (float(side + rng.normal(0, 1)) for side in each.box)
            middle = whole_within(tile, SHAPE)
            is_cut = left < middle[0] or top < middle[1] or right > middle[2] or bottom > middle[3]
            mask = each.mask
            if mask is not None:
                mask = mask._replace(left=max(0, round(left)), top=max(0, round(top)))
            moved = dataclasses.replace(each, box=(left, top, right, bottom), mask=mask, is_cut=is_cut)
            found.append(dataclasses.replace(moved, score=float(rng.uniform(0.1, 1))))
    assert len(merge_detections(found, tiling.tiles(SHAPE), SHAPE)) == len(objects)


def test_unlikely_objects_are_left_out_and_nothing_gives_nothing() -> None:
    assert in_tiles([(0, disc(60, 96, 12))], Tiling(96), score=lambda number: 0.04) == []
    assert in_tiles([], Tiling(96)) == []
    tile = Region(0, 0, 96, 96)
    empty = CompactMask.crop(np.zeros((96, 96), bool))
    twice = [Detection(Region(i, 0, 96 + i, 96), (10, 10, 20, 20), 0.9, 0, empty, True) for i in (0, 1)]
    assert len(merge_detections(twice, [], SHAPE)) == 2
    alike = [Detection(tile, (10, 10, 20, 20), 0.9, 0, None, True)] * 2
    assert len(merge_detections(alike, [], SHAPE)) == 2  # one tile: the head's matter


@pytest.mark.parametrize("shape", [(96, 96), (50, 40), (97, 96), (230, 310), (1, 1000)])
def test_tiles_cover_the_picture(shape: tuple[int, int]) -> None:
    for overlap in (0.0, 0.25, 0.9):
        covered = np.zeros(shape, int)
        for tile in Tiling(96, overlap).tiles(shape):
            assert tile.right - tile.left == min(96, shape[1])
            assert tile.bottom - tile.top == min(96, shape[0])
            covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert covered.min() >= 1


def test_wrong_tilings_are_explained() -> None:
    for side in (-1, 0, 31):
        with pytest.raises(ValueError, match=f"tile is {side}, expected at least 32 pixels: choose"):
            Tiling(side)
    for overlap in (-0.1, 0.91, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"tile_overlap is .*, expected a fraction"):
            Tiling(96, overlap)
    with pytest.raises(ValueError, match=r"tile_overlap 0.85 of a tile of 32 puts a tile every 5 pixels, expected 8"):
        Tiling(32, 0.85)
    assert Tiling(100, 0.9).step == 10


def test_a_mosaic_shows_what_its_pictures_show() -> None:
    """Tiles of the size of a picture, so that the limits of proposals and detections of an image do not differ."""
    root = Path(piip.__file__).parent / "assets" / "nuclei"
    picture = Image.open(root / "images" / "nuclei_d827a7d8.png").convert("RGB")
    mosaic = Image.new("RGB", (2 * picture.width, 2 * picture.height))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        mosaic.paste(picture, (column * picture.width, row * picture.height))
    (alone,) = piip.Predictor(root / "model", device="cpu").predict([picture])
    (tiled,) = piip.Predictor(root / "model", device="cpu", tile=picture.width).predict([mosaic])
    assert isinstance(alone, InstancePrediction)
    assert isinstance(tiled, InstancePrediction)
    for score, tolerance in ((0.05, 0.1), (0.5, 0.05)):  # nuclei at seams are joined or new
        expected = 4 * int((alone.scores >= score).sum())
        assert int((tiled.scores >= score).sum()) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("side", "overlap"), [(40, 0.25), (33, 0.5), (64, 0.1), (32, 0.7), (70, 0.25)])
def test_classes_are_those_of_averaged_probabilities(side: int, overlap: float) -> None:
    shape, classes = (50, 70), 4
    generator = torch.Generator().manual_seed(0)
    tiling = Tiling(side, overlap)
    chances = {
        tile: torch.rand(classes, tile.bottom - tile.top, tile.right - tile.left, generator=generator)
        for tile in tiling.tiles(shape)
    }
    total, count = torch.zeros(classes, *shape), torch.zeros(shape)
    for tile, values in chances.items():
        total[:, tile.top : tile.bottom, tile.left : tile.right] += values
        count[tile.top : tile.bottom, tile.left : tile.right] += 1
    labels = tiled_labels(chances.__getitem__, shape, tiling)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), (total / count).argmax(0))


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_are_those_of_the_whole_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    masks = [np.zeros(shape, bool), np.ones(shape, bool), np.eye(*shape, dtype=bool)]
    masks += [rng.random(shape) < share for share in (0.1, 0.5, 0.9)]
    masks.append(np.repeat(rng.random((1, shape[1])) < 0.5, shape[0], axis=0))  # whole columns
    for mask in masks:
        piece = CompactMask.crop(mask)
        coded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert piece.run_lengths(shape) == {"size": list(shape), "counts": coded["counts"].decode()}
        assert np.array_equal(piece.whole(shape), mask)
        united = CompactMask.united([piece, CompactMask.crop(np.zeros(shape, bool)), CompactMask.crop(masks[2])])
        assert np.array_equal(united.whole(shape), mask | masks[2])


def test_hundreds_of_objects_in_a_hundred_million_pixels_fit_into_memory() -> None:
    """As a stack of masks, they would be 40 GB."""
    shape, side = (10_000, 10_000), 1000
    rng = np.random.default_rng(0)
    centres = rng.integers(20, 9_980, (400, 2))
    pattern = torch.from_numpy(disc(20, 20, 19, (41, 41)))
    tracemalloc.start()
    found: list[Detection] = []
    tiles = Tiling(side, 0.1).tiles(shape)
    for tile in tiles:
        boxes, masks = [], []
        for y, x in centres:
            if tile.left <= x - 20 and x + 21 <= tile.right and tile.top <= y - 20 and y + 21 <= tile.bottom:
                mask = torch.zeros(side, side, dtype=torch.bool)
                mask[y - 20 - tile.top :, x - 20 - tile.left :][:41, :41] = pattern
                masks.append(mask)
                boxes.append([x - 19 - tile.left, y - 19 - tile.top, x + 20 - tile.left, y + 20 - tile.top])
        if boxes:
            values = {"boxes": torch.tensor(boxes).float(), "masks": torch.stack(masks)}
            values |= {"scores": torch.full((len(boxes),), 0.9), "labels": torch.zeros(len(boxes)).long()}
            found += tile_detections(values, tile, shape)
    objects = merge_detections(found, tiles, shape)
    prediction = InstancePrediction(
        None,
        shape,
        ["disc"],
        torch.tensor([each.box for each in objects]),
        torch.tensor([each.score for each in objects]),
        torch.tensor([each.label for each in objects]),
        tuple(each.mask for each in objects if each.mask is not None),
    )
    rows = prediction.annotations(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 350 < len(rows) <= 400
    assert peak < 100e6
    assert sum(int(coder.area(row["segmentation"])) for row in rows[:5]) == 5 * int(pattern.sum())


def write_dense(directory: Path, kind: str) -> Path:
    """Export an untrained detector or segmentor."""
    torch.manual_seed(0)
    values = shapes.dense_recipe(directory, directory, "semantic_masks" if kind == "upernet" else "coco")["model"]
    values["head"] |= {"kind": kind, "width": 64 if kind == "dino" else 16}
    model = build_model(ModelConfig.from_dict(values))
    dense = DenseTransformConfig(pad_divisor=32, mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3))
    save_model(
        model, directory, {"classes": ["box", "disc"], "dense": dataclasses.asdict(dense), "detections": [1, 10, 20]}
    )
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    dense = {kind: write_dense(root / kind, kind) for kind in ("mask_rcnn", "dino", "upernet")}
    return {**dense, "classifier": write_model(root / "classifier")}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(shapes.draw_shapes(number, (90, 140))[0]).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["mask_rcnn", "dino", "upernet"])
def test_one_name_predicts_with_every_model(models: dict[str, Path], pictures: Path, kind: str) -> None:
    predictor = piip.Predictor(models[kind], device="cpu")
    assert predictor.classes == ["box", "disc"]
    rows = list(predictor.predict_paths([pictures]))
    assert [row.path for row in rows] == [str(pictures / "0.png"), str(pictures / "1.png")]
    one_tile = piip.Predictor(models[kind], device="cpu", tile=140)
    for row, again in zip(rows, one_tile.predict([Image.open(row.path or "") for row in rows]), strict=True):
        assert {**again.to_dict(), "path": row.path} == row.to_dict()
    json.dumps(rows[0].to_dict())
    assert predictor.predict([]) == []
    (pictures / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot be read .*--on-error skip"):
        list(predictor.predict_paths([pictures], on_error="stop"))
    assert len(list(predictor.predict_paths([pictures]))) == 1


@pytest.mark.parametrize("kind", ["mask_rcnn", pytest.param("dino", marks=pytest.mark.slow), "upernet", "classifier"])
@pytest.mark.parametrize("to_files", [True, False])
def test_the_command_serves_every_kind_of_model(
    models: dict[str, Path], pictures: Path, tmp_path: Path, kind: str, to_files: bool, capsys
) -> None:
    options = ["--out", str(tmp_path / "out")] if to_files else []
    options += [] if kind == "classifier" else ["--tile", "100", "--tile-overlap", "0.5"]
    main(["predict", str(models[kind]), str(pictures), "--device", "cpu", *options])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(pictures / "0.png"), str(pictures / "1.png")]
    main(["predict", str(models[kind]), str(pictures), "--device", "cpu", "--json", *options])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if not to_files:
        return
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["path"] for image in content["images"]] == [row["path"] for row in rows]
    assert content["classes"] == (["blue", "green", "red"] if kind == "classifier" else ["box", "disc"])
    assert len(content["annotations"]) == sum(row.get("instances", 0) for row in rows)
    assert (tmp_path / "out" / "drawn").exists() == (kind != "classifier")
    for image in content["images"]:
        for name in {"index", "drawn"} & image.keys():
            with Image.open(image[name]) as picture:
                assert picture.size == (140, 90)
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        assert -1e-3 <= x <= x + width <= 140 + 1e-3
        assert -1e-3 <= y <= y + height <= 90 + 1e-3
        assert ("segmentation" in row) == (kind == "mask_rcnn")


def test_tiles_are_predicted_like_pictures_of_their_own(models: dict[str, Path]) -> None:
    """Without overlap, and without an object at the border, tiles are the parts' own answers."""
    picture = Image.fromarray(shapes.draw_shapes(5, (64, 128))[0])
    predictor = load_dense_predictor(models["upernet"], device="cpu", tiling=Tiling(64, 0.0))
    (found,) = predictor.predict([picture])
    parts = [predictor.predict([picture.crop((left, 0, left + 64, 64))])[0] for left in (0, 64)]
    assert isinstance(found, SemanticPrediction)
    want = torch.cat([part.labels for part in parts if isinstance(part, SemanticPrediction)], 1)
    assert (found.labels == want).float().mean() > 0.99  # rounding decides where two classes are alike


def test_a_detector_with_known_answers_in_tiles(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a picture to instances: the picture's colours are what the detector finds."""
    objects = scattered(3)
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    for number, (label, mask) in enumerate(objects):
        pixels[mask] = (number + 1, label, 0)

    def run(self: DetectionPredictor, batches: Any, *, max_detections: int | None = None) -> dict[str, Tensor]:
        (batch,) = batches
        size = batch.image_infos[0].size
        image = ((batch.image[0, :2, : size[0], : size[1]] * 0.3 + 0.4) * 255).round().numpy()
        numbers = [int(number) for number in np.unique(image[0]) if number]
        seen = [(objects[number - 1][0], image[0] == number) for number in numbers]
        return detect(seen, Region(0, 0, size[1], size[0]), lambda number: 0.9, True)

    monkeypatch.setattr(DetectionPredictor, "run", run)
    picture = Image.fromarray(pixels)
    results = []
    for tile in (None, 100):
        (found,) = piip.Predictor(models["mask_rcnn"], device="cpu", tile=tile, tile_overlap=0.4).predict([picture])
        assert isinstance(found, InstancePrediction)
        assert found.masks is not None
        rows = zip(found.labels.tolist(), found.boxes.tolist(), found.masks, strict=True)
        results.append({(label, *box, mask.whole(SHAPE).tobytes()) for label, box, mask in rows})
    assert results[0] == results[1]
    assert len(results[0]) == len(objects)


def test_turned_pictures_are_predicted_and_drawn_upright(models: dict[str, Path], tmp_path: Path) -> None:
    picture = Image.fromarray(shapes.draw_shapes(2, (90, 140))[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "plain.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    predictor = piip.Predictor(models["mask_rcnn"], device="cpu")
    plain, turned = predictor.predict_paths([tmp_path / "plain.png", tmp_path / "turned.png"])
    (in_memory,) = predictor.predict([Image.open(tmp_path / "turned.png")])
    for other in (turned, in_memory):
        assert {**other.to_dict(), "path": plain.path} == plain.to_dict()
    main(
        [
            "predict",
            str(models["mask_rcnn"]),
            str(tmp_path / "*.png"),
            "--out",
            str(tmp_path / "out"),
            "--device",
            "cpu",
        ]
    )
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out" / "drawn").glob("*.png"))]
    assert np.array_equal(*drawn)


def test_tiles_are_not_for_classifiers(models: dict[str, Path], pictures: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["predict", str(models["classifier"]), str(pictures), "--tile", "64", "--device", "cpu"])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "but only detectors and segmentors have this option, this is no such model: remove it" in error


def test_pictures_beyond_pillows_limit_need_tiles(
    models: dict[str, Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(ValueError, match=r"0.png cannot be read \(DecompressionBombError.*Use --tile"):
        list(piip.Predictor(models["upernet"], device="cpu").predict_paths([pictures], on_error="stop"))
    rows = list(piip.Predictor(models["upernet"], device="cpu", tile=64).predict_paths([pictures]))
    assert len(rows) == 2
    assert Image.MAX_IMAGE_PIXELS == 5000


def test_what_is_predicted_before_an_error_is_written(models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    (pictures / "1.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        main(["predict", str(models["dino"]), str(pictures), "--out", str(tmp_path / "out"), "--device", "cpu"])
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["id"] for image in content["images"]] == [1]
