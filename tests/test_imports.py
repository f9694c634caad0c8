"""Imports between files: no circle, one direction between packages, late imports only where they are listed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "piip"
FILES = sorted(PACKAGE.rglob("*.py"))

# Files at the top level and packages, in the order of docs/architecture.md: each may import those before it.
ORDER = """
__init__ deprecation lazy tables kinds texts fields output config structures device ops layers branches heads
optimize data
cost serialization backbone models build zoo checkpoints recipe
export inference evaluation training bench compare plan demo explain app integrations cli __main__
""".split()
# Imports against that order, and why: by file, the module that is imported.
AGAINST_ORDER = {
    # the rules that build models come after the models; counting itself comes before
    ("cost/estimate.py", "piip.build"),
    ("cost/estimate.py", "piip.zoo.create"),
    ("cost/estimate.py", "piip.serialization.base"),
    ("cost/operations.py", "piip.serialization.base"),
    ("cost/paper.py", "piip.backbone"),
    # one function makes any model fast, in other runtimes too
    ("optimize/rewrite.py", "piip.export.runtime"),
    ("cost/paper.py", "piip.build"),
    # a method of predictions, for who has supervision
    ("inference/predictions.py", "piip.integrations.supervision"),
    # writing comes before the models, rebuilding after them
    ("serialization/load.py", "piip.build"),
    ("serialization/load.py", "piip.zoo.published"),
}
# Imports inside functions: of heavy packages that few calls need, or of what comes later in the order.
LATE = {
    "cli": "everything: help answers at once",
    "evaluation": "matplotlib, for reports only",
    "ops/deform_attn.py": "Triton, on CUDA only",
    "inference/predictions.py": "supervision, which is optional",
    "lazy.py": "the point of it",
    "fields.py": "yaml, for text from the command line only",
    "optimize/rewrite.py": "the exporters, for another runtime only",
    "serialization/base.py": "the hub, when a model is saved",
    "recipe/models.py": "the zoo, when a recipe names a model",
}


def short(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def type_checking(path: Path) -> set[int]:
    """Return the nodes that only type checkers see."""
    blocks = [n for n in ast.walk(tree(path)) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {id(node) for block in blocks for node in ast.walk(block)}


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield module, line, and whether the import stands inside a function, of every import at run time."""
    hidden = type_checking(path)
    inside = {
        id(node)
        for function in ast.walk(tree(path))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree(path)):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno} imports relatively; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else str(node.module)), node.lineno, id(node) in inside


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    for module, line, _ in imports(path):
        if module in MODULES and module not in ("piip", module_of(path)):
            yield module, line


def position(path: Path) -> int:
    return ORDER.index(path.relative_to(PACKAGE).with_suffix("").parts[0])


def test_no_file_imports_itself_through_others() -> None:
    graph = {name: {module for module, _ in own_imports(path)} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, f"import circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, [*trail, name])
        done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_imports_go_one_way() -> None:
    wrong = [
        f"{short(path)}:{line} imports {module}"
        for path in FILES
        for module, line in own_imports(path)
        if position(MODULES[module]) > position(path) and (short(path), module) not in AGAINST_ORDER
    ]
    assert not wrong, "imports against the order of docs/architecture.md:\n" + "\n".join(wrong)


def test_exceptions_are_still_needed() -> None:
    used = {(short(path), module) for path in FILES for module, _ in own_imports(path)}
    assert not AGAINST_ORDER - used


def test_late_imports_of_our_own_are_listed() -> None:
    wrong = [
        f"{short(path)}:{line} imports {module} inside a function"
        for path in FILES
        for module, line, is_late in imports(path)
        if is_late and module in MODULES and not any(short(path).startswith(listed) for listed in LATE)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_says_what_lives_there() -> None:
    for path in FILES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            lines = (ast.get_docstring(tree(path)) or "").splitlines()
            assert 3 <= len(lines) <= 10, f"{short(path)}: a docstring of three to eight lines or so, not {len(lines)}"


def test_the_top_level_is_small() -> None:
    top = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(top) <= 14, f"a newcomer reads the top level first: {top}"


def test_import_piip_loads_nothing_heavy() -> None:
    heavy = "torchvision timm pytorch_lightning lightning torchmetrics huggingface_hub PIL rich matplotlib".split()
    heavy += "transformers segmentation_models_pytorch supervision".split()
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
