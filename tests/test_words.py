"""The field's words (docs/architecture.md has a glossary): what was called otherwise once does not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    *sorted((ROOT / "piip").rglob("*.py")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
# Pattern -> the word to use.
WORDS = {
    r"\bImageFrame\b|\bframes\b(?! per)": "ImageInfo, image_infos",
    r"\bindex maps?\b": "semantic masks",
    r"\b[Cc]lasses of pixels\b": "semantic segmentation, semantic masks",
    r"\b[Oo]verlap of classes\b": "mIoU",
    r"\bar_(first|second)\b": "ar_1, ar_10, ar_100",
    r"\b[Nn]obody\b|\b[Ss]omebody\b": "a passive, or the person",
    r"\bby whatever\b": "a plain sentence",
    r"\bTells? whether\b": "Return whether",
    r"\bwent worst\b": "worst-scoring images",
    r"\bchances\b": "probs, probabilities",
    r"\btruths\b": "targets",
    r"\bDescribedModel\b": "PyramidModel",
    r"\brooms?\b": "packages, modules",
    r"\b(detections|instances|objects) an image\b": "per image",
    r"\b(map|width|size)s? a branch\b": "per branch",
}
ALLOWED = {
    ("CHANGELOG.md", r"\bar_(first|second)\b"),
    ("piip/evaluation/metrics/coco.py", r"\bar_(first|second)\b"),  # reads the old names
}


@pytest.mark.parametrize("pattern", WORDS)
def test_words_that_do_not_come_back(pattern: str) -> None:
    wrong = []
    for path in TEXTS:
        name = str(path.relative_to(ROOT))
        if (name, pattern) in ALLOWED:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(pattern, line):
                wrong.append(f"{name}:{number} {line.strip()}")
    assert not wrong, f"use: {WORDS[pattern]}\n" + "\n".join(wrong)
