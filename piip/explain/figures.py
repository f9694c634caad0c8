"""Figures of an explanation, one function per section of the page. Colours are those of Okabe and Ito, 2008."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from piip.explain.explanation import Explanation, Features, SamplingPoints

WIDTH, DPI = 10.0, 110  # inches, dots per inch
SHOWN_INTERACTIONS = 4  # columns of sampling points
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
QUERY_COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7")
OTHER_PARTS = {"interactions": "#4d4d4d", "merge": "#808080", "neck": "#a6a6a6", "head": "#cccccc"}
INK, GREY = "#1c2430", "#5a6570"
MARKERS = "os^Dv*"


def draw_images(explanation: Explanation) -> Figure:
    """Return the images of all branches at one scale, above their shares of the multiply-adds."""
    sizes = [view.size for view in explanation.branches]
    widths = [max(size[1], 0.2 * sum(size[1] for size in sizes)) for size in sizes]  # titles need some width
    height = min(4.5, 0.93 * WIDTH / sum(widths) * max(size[0] for size in sizes))
    figure = _figure(height + 2.5)
    rows = figure.add_gridspec(2, 1, height_ratios=(height + 1.2, 0.75))
    grid = rows[0].subgridspec(1, len(sizes), width_ratios=widths)
    edge = max(size[0] for size in sizes)
    for index, view in enumerate(explanation.branches):
        axis = figure.add_subplot(grid[index])
        axis.imshow(view.image, extent=(0, view.size[1], view.size[0], 0), interpolation="nearest")
        axis.set_xlim(0, widths[index])
        axis.set_ylim(edge, 0)
        axis.axis("off")
        network = view.network.replace(" ", "\n", 1)  # name and sizes
        text = f"branch {index}: {view.size[1]} x {view.size[0]} pixels\n{view.share:.0%} of multiply-adds\n{network}"
        axis.set_title(text, fontsize=8, color=INK, loc="left")
    _draw_costs(figure.add_subplot(rows[1]), explanation.macs)
    return figure


def _draw_costs(axis: Axes, macs: Mapping[str, int]) -> None:
    """Draw one bar of all parts, with their names below."""
    total, left = max(sum(macs.values()), 1), 0.0
    branches = iter(COLOURS * len(macs))
    for name, value in macs.items():
        share = value / total
        colour = OTHER_PARTS.get(name) or next(branches)
        axis.barh(0, share, left=left, color=colour, edgecolor="white", label=f"{name} {share:.0%}")
        left += share
    axis.set_xlim(0, 1)
    axis.axis("off")
    axis.set_title(f"Multiply-adds by part, {total / 1e9:.3g} G in total", fontsize=9, color=INK, loc="left")
    axis.legend(ncols=min(len(macs), 7), loc="upper left", bbox_to_anchor=(0, 0.08), frameon=False, fontsize=8)


def draw_points(explanation: Explanation) -> Figure:
    """Return the sampling points on the image: a row per direction, a column per interaction."""
    directions = list(dict.fromkeys((points.source, points.target) for points in explanation.points))
    depths = _spread(sorted({points.interaction for points in explanation.points}), SHOWN_INTERACTIONS)
    image = explanation.branches[-1].image
    side = min(WIDTH / SHOWN_INTERACTIONS * image.height / image.width, 3.0)
    figure = _figure(len(directions) * (side + 0.32) + 0.1)
    axes = figure.subplots(len(directions), SHOWN_INTERACTIONS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for points in explanation.points:
        if points.interaction in depths:
            row = directions.index((points.source, points.target))
            _draw_points(axes[row][depths.index(points.interaction)], points, image)
    return figure


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` values, first and last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _draw_points(axis: Axes, points: SamplingPoints, image: Image.Image) -> None:
    height, width = points.image_size
    grey = np.asarray(image.convert("L"), dtype=np.float32) * 0.6 + 60  # colours stand out, and white and black as well
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    scale = np.array((width, height))
    for index, (query, places, weights) in enumerate(
        zip(points.queries * scale, points.locations * scale, points.weights, strict=True)
    ):
        areas = np.maximum(3, 260 * weights)
        colour = QUERY_COLOURS[index % len(QUERY_COLOURS)]
        axis.scatter(places[:, 0], places[:, 1], s=areas, color=colour, edgecolors="black", linewidths=0.3, zorder=3)
        axis.plot(*query, marker="x", color="white", markersize=5, markeredgewidth=2.2, zorder=4)
        axis.plot(*query, marker="x", color="black", markersize=4, markeredgewidth=1.0, zorder=5)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    title = f"branch {points.target} reads {points.source}, interaction {points.interaction}"
    axis.set_title(f"{title}\nmean distance {points.mean_distance:.0f} px", fontsize=8, color=INK, loc="left")


def draw_features(explanation: Explanation) -> Figure:
    """Return components of every branch's features around the first and the last interaction, and their change."""
    last = max(features.interaction for features in explanation.features)
    is_exchanged = len(explanation.branches) > 1
    depths = sorted({0, last}) if is_exchanged else [last]
    count = len(explanation.branches)
    height, width = explanation.features[0].change.shape
    figure = _figure(count * (min(WIDTH / 6.5 * height / width, 2.5) + 0.5) + 0.1)
    axes = figure.subplots(count, 6, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for features in explanation.features:
        if features.interaction in depths:
            start = 3 * depths.index(features.interaction)
            _draw_features(figure, axes[features.branch][start : start + 3], features, is_exchanged=is_exchanged)
    return figure


def _draw_features(figure: Figure, axes: Sequence[Axes], features: Features, *, is_exchanged: bool) -> None:
    height, width = features.change.shape
    name = f"branch {features.branch}"
    size = f"{width} x {height} tokens, {features.explained:.0%}"
    axes[0].imshow(features.before, interpolation="nearest")
    when = f"before interaction {features.interaction}" if is_exchanged else "after the last stage"
    axes[0].set_title(f"{name}\n{when}\n{size}", fontsize=7, color=INK, loc="left")
    if not is_exchanged:
        return
    axes[1].imshow(features.after, interpolation="nearest")
    axes[1].set_title(f"after interaction {features.interaction}", fontsize=7, color=INK, loc="left")
    drawn = axes[2].imshow(features.change, cmap="cividis", vmin=0, interpolation="nearest")
    axes[2].set_title("change", fontsize=7, color=INK, loc="left")
    bar = figure.colorbar(drawn, ax=axes[2], location="bottom", aspect=14, pad=0.02)
    bar.locator = MaxNLocator(2)
    bar.ax.tick_params(labelsize=6, length=2)


def draw_gates(explanation: Explanation) -> Figure:
    """Return the mean absolute gates by depth, a panel per kind and a line per direction."""
    kinds = list(dict.fromkeys(gate.kind for gate in explanation.gates))
    directions = list(dict.fromkeys((gate.source, gate.target) for gate in explanation.gates))
    figure = _figure(2.9)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    axes[0].set_ylim(0, 1.08 * max(gate.mean_abs for gate in explanation.gates) or 1.0)
    for axis, kind in zip(axes, kinds, strict=True):
        for index, (source, target) in enumerate(directions):
            gates = [g for g in explanation.gates if (g.source, g.target, g.kind) == (source, target, kind)]
            axis.plot(
                [gate.interaction for gate in gates],
                [gate.mean_abs for gate in gates],
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                label=f"branch {target} reads {source}",
            )
        axis.set_title(f"{kind} gate", fontsize=9, color=INK, loc="left")
        axis.set_xlabel("interaction", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#e5e7eb")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean |gate|", fontsize=8)
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def draw_removals(explanation: Explanation) -> Figure:
    """Return the result with all branches and without each, and bars of how much is lost."""
    assert explanation.prediction is not None  # it has a result without every branch
    results = [explanation.prediction, *(removal.prediction for removal in explanation.removals)]
    names = ["all branches", *(f"without branch {removal.branch}" for removal in explanation.removals)]
    legend = explanation.prediction.legend()
    size = explanation.image.size
    columns = len(results) if explanation.prediction.is_drawn else 0
    height = min(4.0, WIDTH / max(columns, 1) * size[1] / size[0]) + 0.3 if columns else 0.0
    key = 0.0 if legend is None else legend.height / 100
    bars = 0.65 + 0.55 * len(explanation.removals)
    figure = _figure(height + key + bars)
    parts = figure.add_gridspec(3, 1, height_ratios=(max(height, 1e-3), max(key, 1e-3), bars))
    if columns:
        images = parts[0].subgridspec(1, columns)
        for index, (name, result) in enumerate(zip(names, results, strict=True)):
            axis = figure.add_subplot(images[index])
            axis.imshow(result.draw(explanation.image))
            axis.set_title(name, fontsize=9, color=INK, loc="left")
            axis.axis("off")
    if legend is not None:
        axis = figure.add_subplot(parts[1])
        axis.imshow(legend)
        axis.axis("off")
        axis.set_anchor("W")
    _draw_losses(figure.add_subplot(parts[2]), explanation)
    return figure


def _draw_losses(axis: Axes, explanation: Explanation) -> None:
    for row, removal in enumerate(explanation.removals):
        axis.barh(row, removal.change.amount, height=0.38, color=COLOURS[removal.branch % len(COLOURS)])
        axis.text(0, row - 0.27, removal.change.text, fontsize=8, color=INK, va="bottom")
    axis.set_yticks(
        range(len(explanation.removals)), [f"without branch {removal.branch}" for removal in explanation.removals]
    )
    axis.set_ylim(len(explanation.removals) - 0.5, -0.75)
    axis.set_xlim(0, max(0.1, *(1.05 * removal.change.amount for removal in explanation.removals)))
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(explanation.removals[0].change.measure, fontsize=9, color=INK, loc="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Section:
    """One section of the page.

    Args:
        name: Name of its PNG file.
        title: Heading, which says what one sees.
        text: How to read it.
        is_there: Whether an explanation has what the section shows.
        draw: Draws it.
    """

    def __init__(
        self,
        name: str,
        title: str,
        text: str,
        is_there: Callable[[Explanation], bool],
        draw: Callable[[Explanation], Figure],
    ) -> None:
        self.name = name
        self.title = title
        self.text = text
        self.is_there = is_there
        self.draw = draw


# In the order of the page.
SECTIONS = (
    Section(
        "images",
        "What each branch sees",
        "The input of the model, resized for every branch and drawn at one scale: the largest network sees the "
        "smallest image. Padding has a plain colour. The bar shows the parts' shares of the multiply-adds.",
        lambda explanation: True,
        draw_images,
    ),
    Section(
        "points",
        "Where the branches read from each other",
        "For a few positions (crosses), the points that one branch samples from its neighbour. A larger dot has more "
        "weight; points of all heads are shown, those outside the image read zeros.",
        lambda explanation: bool(explanation.points),
        draw_points,
    ),
    Section(
        "features",
        "Features before and after the exchange",
        "Three principal components per branch at the first and the last interaction, in a basis common to before and "
        "after: brightness is the first, yellow against blue the second, magenta against green the third; the "
        "percentage is their share of the variance. Change is its length relative to the mean length before.",
        lambda explanation: True,
        draw_features,
    ),
    Section(
        "gates",
        "How far the gates are open",
        "Mean absolute gate of every interaction and direction; 0 lets nothing through, and new models start there. "
        "Gates multiply features of different size, so compare them along one line rather than between lines.",
        lambda explanation: bool(explanation.gates),
        draw_gates,
    ),
    Section(
        "removals",
        "What each branch adds to the result",
        "The result when one branch is taken away: its interactions do nothing and its share of the merged map (or of "
        "the averaged logits) is zero. The model was not trained for that, so this shows what it relies on, not how a "
        "model trained without the branch would do.",
        lambda explanation: bool(explanation.removals),
        draw_removals,
    ),
)
