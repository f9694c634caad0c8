"""The documentation: its code runs, its commands parse, its links lead somewhere, every public name has a page."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import (
    ROOT,
    anchors,
    check_command,
    commands,
    inline_commands,
    links,
    read_blocks,
)

import piip
from piip.cli import main
from piip.recipe import Recipe
from piip.texts import parse_yaml

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
# Whose blocks run elsewhere, or not at all although no comment behind them says why.
ELSEWHERE = {
    "extending.md": "test_extending.py",
    "integrations.md": "test_integrations_examples.py",
    "models.md": "it needs the authors' files",
    "performance_details.md": "they take half an hour",
}
SLOW = ("quickstart.md", "cost.md")
IN_REPOSITORY = ("recipes/", "benchmarks/", "tools/", "examples/", "notebooks/", "tests/")
DISPLAYED = {"text", "yaml", "{eval-rst}", "{toctree}", "{commands}"}
RUNNABLE = {"python", "py", "sh"}
OTHER_PROGRAMS = {"git", "wget", "hf", "jupyter", "torchrun", "python", "python3", "pip"}
DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|py:data):: (\S+)$", re.MULTILINE)


def runnable(page: str) -> bool:
    blocks = [block for block in read_blocks(PAGES[page]) if block.language in RUNNABLE]
    return page not in ELSEWHERE and any(block.runs for block in blocks)


RUN = [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES if runnable(page)]


def run_commands(lines: list[str]) -> None:
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "piip", f"{line}: say why it is not run"
        main(words)


@pytest.mark.parametrize("page", RUN)
def test_code_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """The blocks of a page run in order, in one folder and with the names of those before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    for block in read_blocks(PAGES[page]):
        file = re.match(r"# (\S+\.yaml)\n", block.code)
        if block.language == "yaml" and file:
            Path(file.group(1)).write_text(block.code, encoding="utf-8")
        if not block.runs or block.language not in RUNNABLE:
            continue
        capsys.readouterr()
        if block.language == "sh":
            run_commands(commands(block))
        else:
            exec(compile(block.code, page, "exec"), names)
        assert not block.output or capsys.readouterr().out == block.output


def test_the_quickstart_is_run_as_a_whole() -> None:
    assert "quickstart.md" in [parameter.values[0] for parameter in RUN]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_known_kind(page: str) -> None:
    assert {block.language for block in read_blocks(PAGES[page])} <= DISPLAYED | RUNNABLE


@pytest.mark.parametrize("page", [page for page in PAGES if "```yaml" in PAGES[page]])
def test_yaml_names_fields_that_exist(page: str) -> None:
    sections = typing.get_type_hints(Recipe)
    for block in read_blocks(PAGES[page]):
        values = parse_yaml(block.code, page) if block.language == "yaml" else {}
        if "model" in values:
            assert Recipe.from_dict(values)
        for name in sections.keys() & values.keys() - {"model"}:
            assert values[name].keys() <= sections[name].__dataclass_fields__.keys(), name


def exists(line: str) -> None:
    """Check that a command line can be typed: program, command, options and files are there."""
    words = shlex.split(line)
    if Path(words[0]).name == "piip" or words[1:3] == ["-m", "piip"] or ("torchrun" in words[0] and "piip" in words):
        check_command(words[words.index("piip") + 1 if "piip" in words else 1 :])
    elif words[0] == "make":
        target = words[1]
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line
    elif "/" in words[0] and not words[0].startswith("out/"):
        assert (ROOT / words[0]).is_file(), line
    else:
        assert Path(words[0]).name in OTHER_PROGRAMS or "=" in words[0], f"{line}: unknown program"
    for word in words[1:]:
        if word.startswith(IN_REPOSITORY) and word != "recipes/my.yaml":
            assert (ROOT / word).exists(), line
    for extras in re.findall(r"(?:piip|\.)\[([\w,]+)\]", line):
        assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = \[", PYPROJECT, re.MULTILINE)), line


PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LINES = [(page, line) for page in PAGES for block in read_blocks(PAGES[page]) if block.language == "sh"
         for line in commands(block)]  # fmt: skip


@pytest.mark.parametrize(("page", "line"), LINES)
def test_commands_parse(page: str, line: str) -> None:
    exists(line)


def test_wrong_commands_are_found() -> None:
    for line in ("piip predictt x", "piip predict m x --tilee 3", "make dance", "tools/nothing.sh", "unknown x"):
        with pytest.raises((ValueError, AssertionError)):
            exists(line)


def options_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage"), f"There is no command {' '.join(words)}"
    return text


@pytest.mark.parametrize("page", [*PAGES, *(page for page in ROOT_PAGES if page != "CHANGELOG.md")])
def test_commands_in_sentences_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The changelog names options as they were."""
    text = PAGES[page] if page in PAGES else (ROOT / page).read_text(encoding="utf-8")
    for words in inline_commands(text):
        called = words[: 2 if words[0] == "data" and len(words) > 1 else 1]
        text = options_of(called, capsys)
        for option in [word for word in words if re.fullmatch(r"--[a-z-]+", word) and word != "--help"]:
            assert re.search(rf"{option}(?![\w-])", text), f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("page", [*(f"docs/{page}" for page in PAGES), *ROOT_PAGES])
def test_links_lead_somewhere(page: str) -> None:
    for target in links((ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / name) if name else ROOT / page
        assert file.resolve().exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def documented() -> set[str]:
    return {name for page in PAGES if page.startswith("reference/") for name in DIRECTIVE.findall(PAGES[page])}


def names_of_adapter(file: str) -> list[str]:
    """Return the public names of an adapter, whose library may not be installed: `__all__`, or what the file makes."""
    body = ast.parse((ROOT / "piip" / "integrations" / file).read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    made = [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return [name for name in made if not name.startswith("_")]


def public_names() -> set[str]:
    """Return what must have a page: public names, those of adapters, and what extensions import."""
    names = {f"piip.{name}" for name in piip.__all__}
    for package in ("piip.checkpoints", "piip.ops"):
        names |= {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    for file in ("torchvision.py", "smp.py", "supervision.py", "transformers/__init__.py"):
        library = file.removesuffix(".py").removesuffix("/__init__")
        names |= {f"piip.integrations.{library}.{name}" for name in names_of_adapter(file)}
    for block in read_blocks(PAGES["extending.md"]):
        for node in ast.walk(ast.parse(block.code if block.language == "python" else "")):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("piip"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_public_name_has_a_page() -> None:
    assert public_names() - documented() == set()


@pytest.mark.parametrize("name", sorted(documented()))
def test_documented_names_exist_and_say_something(name: str) -> None:
    module, _, last = name.rpartition(".")
    if "integrations" in name:
        pytest.importorskip({"smp": "segmentation_models_pytorch"}.get(module.split(".")[2], module.split(".")[2]))
    thing = getattr(importlib.import_module(module), last)
    assert isinstance(thing, (dict, int)) or (thing.__doc__ or "").strip()


def test_every_page_is_in_the_menu() -> None:
    menu = [line for block in read_blocks(PAGES["index.md"]) if block.language == "{toctree}"
            for line in block.code.splitlines() if line and not line.startswith(":")]  # fmt: skip
    assert sorted(menu) == sorted(page.removesuffix(".md") for page in PAGES if page != "index.md")
