"""Rules of the house: what may import what, how names and docstrings look, what an import costs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from processes import succeed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "piip"
FILES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "compare")

LIGHTNING = {"pytorch_lightning", "lightning", "torchmetrics", "tensorboard"}
# The command starts training late, and tells Lightning to be quiet first.
LIGHTNING_IMPORTS = {("piip/cli/train.py", "pytorch_lightning.utilities", "rank_zero_only")}
# Parts of timm that are no internals of its networks, and who may use them.
TIMM_PARTS = {
    ("piip/plan/families.py", "timm", ""),
    ("piip/layers/interaction.py", "timm.layers", "DropPath"),
    ("piip/layers/map_info.py", "timm.models", "FeatureInfo"),
    ("piip/layers/necks.py", "timm.layers", "LayerNorm2d"),
    ("piip/training/setup.py", "timm.data", "Mixup"),
}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield module, name ("" for `import module`) and line of every import, those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno} imports relatively; write the full name"
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)


def is_in(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(PACKAGE / folder) for folder in folders)


def imports_outside(packages: set[str], *folders: str) -> list[tuple[str, str, str, str]]:
    """Return where packages are imported outside folders of the library: file, module, name and what to say."""
    return [
        (short(path), module, name, f"{short(path)}:{line} imports {module} {name}")
        for path in FILES
        if not is_in(path, *folders)
        for module, name, line in imports(path)
        if module.split(".")[0] in packages
    ]


def test_only_training_imports_lightning() -> None:
    found = imports_outside(LIGHTNING, "training")
    assert {place[:3] for place in found} >= LIGHTNING_IMPORTS, "an exception that nothing needs"
    wrong = [words for *place, words in found if tuple(place) not in LIGHTNING_IMPORTS]
    assert not wrong, "\n".join(wrong)


def test_timm_internals_stay_in_branches() -> None:
    found = imports_outside({"timm"}, "branches", "optimize")
    assert {place[:3] for place in found} >= TIMM_PARTS, "an exception that nothing needs"
    wrong = [
        words
        for path, module, name, words in found
        if not (path.startswith("piip/data/") and module.startswith("timm.data"))
        and (path, module, name) not in TIMM_PARTS
    ]
    assert not wrong, "\n".join(wrong)


def test_import_piip_loads_nothing_heavy() -> None:
    heavy = [
        "torchvision",
        "timm",
        "pytorch_lightning",
        "lightning",
        "torchmetrics",
        "huggingface_hub",
        "PIL",
        "rich",
        "matplotlib",
        "transformers",
        "segmentation_models_pytorch",
        "supervision",
    ]
    code = (
        "import sys, time, torch\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"
        "import piip\n"
        "seconds = time.process_time() - start\n"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])\n"
        "print(seconds)\n"
    )
    loaded, seconds = succeed(sys.executable, "-c", code, cwd=ROOT).splitlines()
    assert loaded == "[]"
    assert float(seconds) < 0.3


def test_public_names_exist() -> None:
    import piip

    assert piip.__all__
    assert {*piip.__all__} <= {*dir(piip)}
    for name in piip.__all__:
        assert getattr(piip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = piip.nothing


def names_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the names that a file gives: variables, arguments, attributes, functions, classes."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno


# Digits that are part of a word (or timm's word), or an image size, do not number several things.
DIGIT_WORDS = re.compile(
    r"_6b(?=_)|_patch\d+|top[15]|2d|bf16|f32|int8|sha256|\b(fc|ls)[12]\b|\bdrop_path[12]\b|_\d{3,4}(?=_|$)"
)


def test_no_digit_tells_things_apart() -> None:
    wrong = [
        f"{short(path)}:{line} {name}"
        for path in FILES
        for name, line in names_of(path)
        if any(letter.isdigit() for letter in DIGIT_WORDS.sub("", name.lower()))
    ]
    assert not wrong, "\n".join(["use a list, or words:", *wrong])


def test_nothing_asks_what_it_has() -> None:
    wrong = [
        f"{short(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Name) and node.id == "hasattr"
    ]
    assert not wrong, "\n".join(["these call hasattr; declare the field instead:", *wrong])


def test_every_file_says_what_it_is_for() -> None:
    wrong = [f"{short(path)}:1" for path in FILES if not ast.get_docstring(tree(path))]
    assert not wrong, "\n".join(["these have no module docstring:", *wrong])


def documented_arguments(docstring: str) -> list[str]:
    """Return the names in the Args section of a Google-style docstring."""
    names: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            inside = line == "Args:"
        elif inside and line.startswith("    ") and line[4:5] not in (" ", ""):
            names.append(line[4:].split(":")[0].split(" ")[0].lstrip("*"))
    return names


def constructor_arguments(node: ast.ClassDef) -> list[str] | None:
    """Return what a class is made from: fields of a dataclass, or arguments of its __init__."""
    if any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        return [item.target.id for item in fields if isinstance(item.target, ast.Name)]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]
            return [argument.arg for argument in arguments[1:]]
    return None


def wrongly_documented(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            documented = documented_arguments(ast.get_docstring(node) or "")
            actual = constructor_arguments(node)
            if documented and actual is not None and documented != actual:
                yield f"{short(path)}:{node.lineno} {node.name} documents {documented}, takes {actual}"


def test_classes_document_what_they_are_made_from() -> None:
    """Ruff compares Args with functions; classes carry those of __init__ or the fields, which it does not compare."""
    wrong = [words for path in FILES for words in wrongly_documented(path)]
    assert not wrong, "\n".join(wrong)


def trouble(path: Path) -> str | None:
    """Return what is wrong with a recipe, or None."""
    from piip.recipe import Recipe, load_recipe

    try:
        recipe = load_recipe(path)
    except ValueError as error:
        return f"{short(path)}: {error}"
    return None if Recipe.from_dict(recipe.to_dict()) == recipe else f"{short(path)} reads another recipe back"


def test_recipes_parse() -> None:
    wrong = [words for path in RECIPES if (words := trouble(path))]
    assert not wrong, "\n".join(wrong)


def test_there_are_recipes() -> None:
    assert RECIPES


def test_a_warning_of_ours_is_an_error() -> None:
    import warnings

    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_the_page_of_oddities_names_every_place_that_keeps_one() -> None:
    page = (ROOT / "docs" / "official.md").read_text(encoding="utf-8")
    places = [short(path) for path in FILES if "parity:" in path.read_text(encoding="utf-8")]
    missing = [place for place in places if f"`{place}`" not in page]
    assert places
    assert not missing, f"docs/official.md does not name {missing}"
