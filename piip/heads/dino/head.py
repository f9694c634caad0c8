"""DINO: boxes from the maps of a backbone, without anchors and non-maximum suppression.

Source: arXiv 2203.03605, the 4-scale model with two stages, denoising, box refinement and "look forward twice"; rules
of the released detectors (`docs/official.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from piip.heads.base import DenseHead, LossesAndMetrics, View
from piip.heads.boxes import clip_boxes
from piip.heads.dino.boxes import inverse_sigmoid, to_pixels
from piip.heads.dino.denoising import NoiseLayout, draw_noise
from piip.heads.dino.losses import mean_count, set_losses
from piip.heads.dino.matching import match
from piip.heads.dino.neck import ChannelMapper
from piip.heads.dino.selection import MAX_LEVELS, CellSelection, Selected
from piip.heads.dino.targets import TrueBoxes
from piip.heads.dino.tokens import flatten_levels
from piip.heads.dino.transformer import Decoder, Encoder, LayerSizes, mlp
from piip.heads.tta import merge_boxes
from piip.layers.outputs import ExportWrapper
from piip.structures import HeadOutput, ImageInfo, Target

if TYPE_CHECKING:
    from piip.models import PIIPDenseModel

PRIOR_PROB = 0.01  # of every class, before training
NoiseSamples = Mapping[str, Tensor]


class NoisyQueries(NamedTuple):
    """Denoising queries, which precede the matching queries.

    Attributes:
        content: (B, P, C).
        boxes: x, y, w, h relative to the image, in logits, float32, (B, P, 4).
        layout: Layout of the noisy copies.
    """

    content: Tensor
    boxes: Tensor
    layout: NoiseLayout


class Decoded(NamedTuple):
    """Output of the head for a batch; P denoising queries, if any, come first.

    Attributes:
        selected: The cells that the matching queries start from.
        states: Normed states of every decoder layer, (B, P + Q, C).
        references: Boxes before the first layer and after each one, (B, P + Q, 4).
        logits: Class logits of every layer, float32, (L, B, P + Q, K).
        boxes: Boxes of every layer, x, y, w, h in [0, 1] relative to the image, float32, (L, B, P + Q, 4).
    """

    selected: Selected
    states: list[Tensor]
    references: list[Tensor]
    logits: Tensor
    boxes: Tensor


class DINOHead(DenseHead):
    """Neck, encoder, selection of queries and decoder.

    Args:
        in_channels: Width of the given maps, finest first; 3 maps of strides 8 to 32 in the released models.
        num_classes: Number of classes K.
        sizes: Sizes of the transformer; its number of levels is what the neck extends the maps to.
        encoder_depth: Encoder layers.
        decoder_depth: Decoder layers.
        num_queries: Number of queries per image.
        num_noisy_queries: Requested number of near copies of target boxes per image in training.
        max_detections: Maximum number of detections per image.

    Raises:
        ValueError: More than five levels: their boxes would be larger than the image.
    """

    task = "detection"
    title = "Detector"
    hub_task = "object-detection"

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        sizes: LayerSizes | None = None,
        encoder_depth: int = 6,
        decoder_depth: int = 6,
        num_queries: int = 900,
        num_noisy_queries: int = 100,
        max_detections: int = 300,
    ) -> None:
        super().__init__()
        sizes = sizes or LayerSizes()
        if sizes.num_levels > MAX_LEVELS:
            raise ValueError(f"num_levels is {sizes.num_levels}, expected at most {MAX_LEVELS}.")
        width, branches = sizes.embed_dim, range(decoder_depth + 1)  # the last one serves the selection
        self.neck = ChannelMapper(in_channels, width, sizes.num_levels)
        self.encoder = Encoder(sizes, encoder_depth)
        self.selection = CellSelection(width, num_queries)
        self.queries = nn.Embedding(num_queries, width)
        self.decoder = Decoder(sizes, decoder_depth)
        self.scores = nn.ModuleList([nn.Linear(width, num_classes) for _ in branches])
        self.boxes = nn.ModuleList([mlp([width, width, width, 4]) for _ in branches])
        self.labels = nn.Embedding(num_classes, width)
        self.num_classes = num_classes
        self.num_noisy_queries = num_noisy_queries
        self.max_detections = max_detections
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise with low class probabilities and zero box refinement."""
        for score in self.scores:
            nn.init.constant_(score.get_parameter("bias"), -math.log((1 - PRIOR_PROB) / PRIOR_PROB))
        for box in self.boxes:
            nn.init.zeros_(box.get_parameter("4.weight"))  # the last of three layers

    def forward(
        self, maps: Sequence[Tensor], image_infos: Sequence[ImageInfo], noisy: NoisyQueries | None = None
    ) -> Decoded:
        """Return the output of the head for maps (B, C_i, H_i, W_i), finest first.

        Args:
            maps: Maps of the backbone.
            image_infos: Sizes and padding of the images.
            noisy: Denoising queries.

        Raises:
            ValueError: The numbers of images in maps and image_infos differ.
        """
        if len(maps[0]) != len(image_infos):
            raise ValueError(f"maps hold {len(maps[0])} images and image_infos {len(image_infos)}; they must be equal.")
        levels = flatten_levels(self.neck(maps), self.encoder.level_embeds, image_infos)
        memory = self.encoder(levels)
        selected = self.selection(memory, levels, score=self.scores[-1], refine=self.boxes[-1])
        first = selected.boxes.detach()
        content = self.queries.weight[: first.shape[1]].expand(len(image_infos), -1, -1).to(memory.dtype)
        attn_mask = None
        if noisy is not None:
            attn_mask = noisy.layout.attn_mask(first.shape[1], memory.device)
            content = torch.cat((noisy.content.to(memory.dtype), content), 1)
            first = torch.cat((noisy.boxes.sigmoid(), first), 1)
        refine = self.boxes[:-1]
        states, references, moves = self.decoder(content, first, memory, levels, refine=refine, attn_mask=attn_mask)
        logits = torch.stack([score(state) for score, state in zip(self.scores[:-1], states, strict=True)]).float()
        boxes = (torch.stack(moves) + inverse_sigmoid(torch.stack(references[:-1]))).sigmoid()
        return Decoded(selected, states, references, logits, boxes)

    @torch.no_grad()
    def predict(
        self,
        maps: Sequence[Tensor],
        image_infos: Sequence[ImageInfo],
        *,
        rescale: bool = True,
        max_detections: int | None = None,
    ) -> list[HeadOutput]:
        """Return the detections of every image; their number is fixed, so filter by score.

        Args:
            maps: Maps of the backbone, finest first.
            image_infos: Sizes and padding of the images.
            rescale: Return boxes in pixels of the original image instead of network pixels.
            max_detections: Maximum number of detections per image; None uses the head's default.

        Returns:
            "boxes" (N, 4) as x1, y1, x2, y2, "scores" (N,), "labels" (N,) from 0; best first. One query may give
            several labels.
        """
        decoded = self(maps, image_infos)
        max_detections = self.max_detections if max_detections is None else max_detections
        results: list[HeadOutput] = []
        for logits, boxes, image_info in zip(decoded.logits[-1], decoded.boxes[-1], image_infos, strict=True):
            probs = logits.sigmoid().flatten()
            scores, indices = probs.topk(min(max_detections, len(probs)))
            found = clip_boxes(to_pixels(boxes[indices // self.num_classes], image_info.size), image_info.size)
            if rescale:
                found = found / found.new_tensor(image_info.scale * 2)
            results.append({"boxes": found, "scores": scores, "labels": indices % self.num_classes})
        return results

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Target],
        image_infos: Sequence[ImageInfo],
        samples: NoiseSamples | None = None,
    ) -> LossesAndMetrics:
        """Return the losses; the total is their sum.

        Args:
            maps: Maps of the backbone, finest first.
            targets: "boxes" (G, 4) in network pixels and "labels" (G,) from 0 of every image.
            image_infos: Sizes and padding of the images.
            samples: Denoising queries to use instead of drawing them: "label_query" (B, P, C) and "bbox_query_unact"
                (B, P, 4), in logits.

        Returns:
            "loss_cls", "loss_bbox" and "loss_iou" of the last layer; with "interm_" before them those of the selected
            cells, with "d0." and so on those of the other layers; of the denoising queries with "dn_" before "loss".
        """
        truth = TrueBoxes.make(targets, image_infos)
        noisy = self._noisy_queries(truth, samples)
        decoded = self(maps, image_infos, noisy)
        losses = self._matched_losses(decoded, truth, noisy.layout) | self._noise_losses(decoded, truth, noisy.layout)
        return LossesAndMetrics(losses, {})

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Return the stages of the head by part; see `DenseHead.parts`."""
        return {
            "mapper": [self.neck],
            "encoder": [self.encoder],
            "selection": [self.selection, self.scores[-1], self.boxes[-1]],
            "decoder": [self.decoder, self.queries, *self.scores[:-1], *self.boxes[:-1]],
        }

    def dry_run(self, maps: Sequence[Tensor], image_info: ImageInfo, *, max_detections: int) -> str:
        """Run the head, whose cost does not depend on the image; see `DenseHead.dry_run`."""
        self.predict(maps, [image_info], max_detections=max_detections)
        return f"up to {self.selection.num_queries:,} queries"

    def predict_views(self, views: Sequence[View], *, max_detections: int) -> HeadOutput:
        """Return the detections of one image from several views of it; see `merge_boxes`."""
        return merge_boxes(self, views, max_detections=max_detections)

    def export_wrapper(self, model: PIIPDenseModel) -> ExportWrapper:
        """Raise an error: DINO heads cannot be exported.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "DINO detectors cannot be exported, expected a classifier, Mask R-CNN, UperNet, vision tower or backbone; "
            "features_only (--features-only) exports a detector's backbone and neck."
        )

    def summary(self) -> str:
        """Return one sentence about the output of the head, for cards."""
        return f"A DINO head detects boxes of {self.num_classes} classes."

    def _noisy_queries(self, truth: TrueBoxes, samples: NoiseSamples | None) -> NoisyQueries:
        layout = NoiseLayout.make(truth.counts, self.num_noisy_queries)
        if samples is not None:
            content, boxes = (torch.as_tensor(samples[name]) for name in ("label_query", "bbox_query_unact"))
            if boxes.shape != (len(truth.counts), layout.num_slots, 4) or content.shape[:2] != boxes.shape[:2]:
                raise ValueError(
                    f"samples hold {tuple(content.shape)} and {tuple(boxes.shape)}, expected {len(truth.counts)} "
                    f"images with {layout.num_slots} denoising queries."
                )
            return NoisyQueries(content, boxes, layout)
        noise = draw_noise(layout, truth, self.num_classes)
        used = noise.labels >= 0
        content = self.labels(noise.labels.clamp(min=0)) * used[..., None]
        return NoisyQueries(content, noise.boxes, layout)

    def _matched_losses(self, decoded: Decoded, truth: TrueBoxes, layout: NoiseLayout) -> dict[str, Tensor]:
        logits, boxes = matching_sets(decoded, layout.num_slots)
        pairs = match(logits, boxes, truth)
        normaliser = mean_count(pairs.queries.shape[1], logits.device)
        prefixes = ["interm_", *_prefixes(len(decoded.logits))]
        return _by_set(set_losses(logits, boxes, pairs, truth, normaliser), prefixes)

    def _noise_losses(self, decoded: Decoded, truth: TrueBoxes, layout: NoiseLayout) -> dict[str, Tensor]:
        logits, boxes = (each[:, :, : layout.num_slots] for each in (decoded.logits, decoded.boxes))
        pairs = layout.match(truth)
        normaliser = mean_count(pairs.queries.shape[1], logits.device)
        prefixes = [f"{prefix}dn_" for prefix in _prefixes(len(decoded.logits))]
        return _by_set(set_losses(logits, boxes, pairs, truth, normaliser), prefixes)


def matching_sets(decoded: Decoded, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the predictions that are matched: the selected cells, then the queries of every layer.

    Args:
        decoded: Output of the head.
        num_slots: Number P of denoising queries, which are not matched.

    Returns:
        Logits (L + 1, B, Q, K) and boxes (L + 1, B, Q, 4).
    """
    _, logits, boxes = decoded.selected
    return (
        torch.cat((logits[None], decoded.logits[:, :, num_slots:])),
        torch.cat((boxes[None], decoded.boxes[:, :, num_slots:])),
    )


def _by_set(losses: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Name the losses (S,) of every set."""
    by_name = {name: values.unbind() for name, values in losses.items()}
    return {prefix + name: each[index] for index, prefix in enumerate(prefixes) for name, each in by_name.items()}


def _prefixes(depth: int) -> list[str]:
    """Return the prefix of the losses of every decoder layer; it is empty for the last one."""
    return [*(f"d{layer}." for layer in range(depth - 1)), ""]
