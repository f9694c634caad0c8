"""Draw docs/images/idea.png: `python tools/draw_idea.py`.

The image is a tile of `piip data landcover`; names and sizes are those of the README's example.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from PIL import Image

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "images" / "idea.png"
IMAGE = ROOT / "docs" / "images" / "idea_input.jpg"

# network, side of its image in pixels, middle of its row, height of its stages, colour
BRANCHES = (
    ("ViT-T", 368, 8.0, 1.0, "#5f9bc9"),
    ("ViT-S", 192, 4.8, 1.5, "#3a77b0"),
    ("ViT-B", 128, 1.5, 2.1, "#1d4f84"),
)
STAGES = {"stage 1": 5.9, "stage 2": 8.7, "stage N": 11.9}  # left ends
STAGE_WIDTH = 1.6
UNITS = tuple(left + STAGE_WIDTH + 0.6 for left in STAGES.values())  # an interaction follows each stage
MERGE, HEAD = 15.1, 17.4
INK, ACCENT = "#222222", "#b8470f"
PIXELS_PER_UNIT = 125  # of an image, in the units of the axes


def box(axes: Axes, left: float, middle: float, width: float, height: float, text: str, colour: str) -> None:
    """Draw a rounded box with a text inside."""
    corner = (left, middle - height / 2)
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec="none")
    axes.add_patch(shape)
    axes.text(left + width / 2, middle, text, ha="center", va="center", color="white", fontsize=10)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, both: bool = False) -> None:
    """Draw an arrow; one with two heads is an exchange."""
    style = "<->" if both else "->"
    look = {
        "arrowstyle": style,
        "color": ACCENT if both else INK,
        "lw": 1.8 if both else 1.1,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=look)


def draw_branch(axes: Axes, name: str, side: int, middle: float, height: float, colour: str) -> None:
    """Draw one row: the image at its size, and the stages of the network that sees it."""
    width = side / PIXELS_PER_UNIT
    with Image.open(IMAGE) as image:
        small = image.convert("RGB").resize((side, side))
    right, starts = 4.1, [*STAGES.values(), MERGE]
    edges = (right - width, right, middle - width / 2, middle + width / 2)
    axes.imshow(small, extent=edges, interpolation="nearest", zorder=2)
    axes.text(right + 0.15, middle + 0.15, f"{side} x {side}", fontsize=9, color=INK)
    arrow(axes, (right + 0.1, middle), (starts[0] - 0.1, middle))
    for (stage, start), following in zip(STAGES.items(), starts[1:], strict=True):
        box(axes, start, middle, STAGE_WIDTH, height, f"{name}\n{stage}", colour)
        arrow(axes, (start + STAGE_WIDTH + 0.1, middle), (following - 0.1, middle))


def draw_texts(axes: Axes) -> None:
    """Draw what the rows and columns mean."""
    over, under = BRANCHES[0][2] + 1.7, BRANCHES[-1][2] - 1.8
    axes.text(0.9, over, "one image,\nseveral resolutions", va="bottom", fontsize=12, color=INK)
    axes.text(STAGES["stage 1"], over, "one network for each: the higher the resolution,\nthe smaller the network",
              va="bottom", fontsize=12, color=INK)  # fmt: skip
    axes.text(STAGES["stage 1"], under, "after every stage, neighbours exchange features by gated cross-attention",
              fontsize=12, color=ACCENT)  # fmt: skip
    for *_, middle, _, _ in BRANCHES:
        axes.text(UNITS[1] + 0.55, middle + 0.1, "...", ha="center", fontsize=14, color=INK)


def draw() -> None:
    """Write the figure."""
    figure, axes = pyplot.subplots(figsize=(12, 7), dpi=110)
    for branch in BRANCHES:
        draw_branch(axes, *branch)
    for unit in UNITS:
        for (_, _, upper, _, _), (_, _, lower, _, _) in itertools.pairwise(BRANCHES):
            arrow(axes, (unit, upper - 0.1), (unit, lower + 0.1), both=True)
    middle = (BRANCHES[0][2] + BRANCHES[-1][2]) / 2
    box(axes, MERGE, middle, 1.4, BRANCHES[0][2] - BRANCHES[-1][2] + 2.0, "merge", "#555555")
    box(axes, HEAD, middle, 1.6, 1.6, "neck\nand head", "#555555")
    arrow(axes, (MERGE + 1.5, middle), (HEAD - 0.1, middle))
    draw_texts(axes)
    axes.set(xlim=(0.8, 19.2), ylim=(-0.6, 11.2), aspect="equal")
    axes.axis("off")
    figure.savefig(OUT, bbox_inches="tight", pad_inches=0.1, facecolor="white")


if __name__ == "__main__":
    draw()
    print(f"{OUT.relative_to(ROOT)}: {OUT.stat().st_size / 1e3:.0f} kB")
