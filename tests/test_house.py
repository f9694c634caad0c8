"""Rules of the house: what may import what, how names and docstrings look, what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "piip"
FILES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

# Every room may import those to its left. A new room gets its place here and in docs/architecture.md.
ROOMS = """
features fields meta config described pyramid ops packed recompute attention branches interaction merge necks backbone
heads counting inference build zoo shards checkpoints cost scores report saving model_card hub exporting export device
data views conversion recipe optim run_folder preparation mask_pieces predicted tiles tasks callbacks progress loggers
training dense_prediction prediction writing evaluation dense_report dense_evaluation demo cli_parser cli_help
cli_convert cli_data cli_export cli_results cli __main__
""".split()

# What a model's own methods reach for only when they are called: saving and sharing know every room in between.
LATE_IMPORTS = {("described", "hub")}
LIGHTNING_ROOMS = ROOMS[ROOMS.index("tasks") :]
# Parts of timm that are no internals of its networks, and who may use them.
TIMM_PARTS = {
    ("interaction", "timm.layers", "DropPath"),
    ("necks", "timm.layers", "LayerNorm2d"),
    ("packed", "timm.layers", "LayerNorm"),
    ("preparation", "timm.data", "Mixup"),
}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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


def imported_room(module: str, name: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "piip" or (module, name) == ("piip", "__version__"):  # a constant, there before anything else
        return None
    return parts[1] if len(parts) > 1 else name if name in ROOMS else "__init__"


def test_every_room_has_its_place() -> None:
    unplaced = {room_of(path) for path in FILES} - {*ROOMS, "__init__"}
    assert not unplaced, f"give {sorted(unplaced)} a place in ROOMS"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    allowed = {*ROOMS[: ROOMS.index(room) + 1]}
    # The command line and the demo are clients: they may write `import piip`.
    if room in ("cli", "demo"):
        allowed.add("__init__")
    wrong = [
        f"{short(path)}:{line} imports {module} {name}"
        for module, name, line in imports(path)
        if imported_room(module, name) not in {None, *allowed}
        and (room, imported_room(module, name)) not in LATE_IMPORTS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_lightning_stays_on_the_right(path: Path) -> None:
    if room_of(path) in LIGHTNING_ROOMS:
        return
    heavy = ("pytorch_lightning", "lightning", "torchmetrics", "tensorboard")
    assert not [line for module, _, line in imports(path) if module.split(".")[0] in heavy]


@pytest.mark.parametrize("path", FILES, ids=short)
def test_timm_internals_stay_in_branches(path: Path) -> None:
    room = room_of(path)
    wrong = [
        f"{short(path)}:{line} imports {module} {name}"
        for module, name, line in imports(path)
        if module.split(".")[0] == "timm"
        and room != "branches"
        and not (room == "data" and module.startswith("timm.data"))
        and not (room in ("optim", "callbacks") and module.startswith(("timm.optim", "timm.utils")))
        and (room, module, name) not in TIMM_PARTS
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
    ]
    code = (
        "import sys, time, torch\n"
        "before = set(sys.modules)\n"
        "start = time.perf_counter()\n"
        "import piip\n"
        "seconds = time.perf_counter() - start\n"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])\n"
        "print(seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded, seconds = done.stdout.splitlines()
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
    r"_6b(?=_)|_patch\d+|top[15]|2d|bf16|f32|sha256|\b(fc|ls)[12]\b|\bdrop_path[12]\b|_\d{3,4}(?=_|$)"
)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_no_digit_tells_things_apart(path: Path) -> None:
    wrong = [
        f"{short(path)}:{line} {name}"
        for name, line in names_of(path)
        if any(letter.isdigit() for letter in DIGIT_WORDS.sub("", name.lower()))
    ]
    assert not wrong, f"use a list, or words: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_nothing_asks_what_it_has(path: Path) -> None:
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and node.id == "hasattr"]
    assert not calls, f"{short(path)}: {[node.lineno for node in calls]} call hasattr; declare the field instead"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{short(path)} has no module docstring"


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


@pytest.mark.parametrize("path", FILES, ids=short)
def test_classes_document_what_they_are_made_from(path: Path) -> None:
    """Ruff compares Args with functions; classes carry those of __init__ or the fields, which it does not compare."""
    wrong = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ClassDef):
            continue
        documented = documented_arguments(ast.get_docstring(node) or "")
        actual = constructor_arguments(node)
        if documented and actual is not None and documented != actual:
            wrong.append(f"{short(path)}:{node.lineno} {node.name} documents {documented}, takes {actual}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_recipes_parse(path: Path) -> None:
    from piip.recipe import Recipe, load_recipe

    recipe = load_recipe(path)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


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
