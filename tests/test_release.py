"""What a release needs: workflows that call existing targets, issue forms, one version everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import piip

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
FIELD_KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
ACTIONS = {
    *(f"actions/{name}" for name in ("checkout", "setup-python", "upload-artifact", "download-artifact")),
    *("actions/upload-pages-artifact", "actions/deploy-pages", "pypa/gh-action-pypi-publish"),
}
MORE_RIGHTS = {
    ("docs", "deploy"): {"pages": "write", "id-token": "write"},
    ("publish", "publish"): {"id-token": "write"},
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def targets_called(text: str) -> list[str]:
    return re.findall(r"^make (\w+)", text, re.M)


def test_there_are_workflows_and_forms() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "docs", "publish"}
    assert {path.stem for path in FORMS} == {"bug", "feature", "results"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    called = [target for command in commands for target in targets_called(command)]
    assert len(called) == len(commands), f"commands that are no targets of make: {commands}"
    assert called
    assert set(called) <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_versions_and_have_no_rights_but_these(path: Path) -> None:
    actions = [step["uses"] for step in steps(path) if "uses" in step]
    assert actions
    assert {action.partition("@")[0] for action in actions} <= ACTIONS
    assert not [action for action in actions if not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", action)]
    assert read(path)["permissions"] == {"contents": "read"}
    more = {(path.stem, name): job["permissions"] for name, job in read(path)["jobs"].items() if "permissions" in job}
    assert all(MORE_RIGHTS.get(key) == rights for key, rights in more.items())


def test_only_the_job_that_uploads_has_an_identity() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "publish.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"
    assert not [step for step in jobs["publish"]["steps"] if "run" in step], "nothing of ours runs with the identity"
    assert "permissions" not in jobs["build"]


def test_continuous_integration_runs_targets_that_exist() -> None:
    called = targets_called((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert set(called) >= {"check", "docs", "test"}
    assert set(called) <= TARGETS


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    assert {field["type"] for field in form["body"]} <= FIELD_KINDS
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names) > 0
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
    for field in form["body"]:
        assert field["type"] != "markdown" or field["attributes"]["value"]


def test_one_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == piip.__version__
    assert f"\n## {piip.__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_citation_names_both_papers() -> None:
    """The fields that the format demands, and the papers as the README names them."""
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    works = [citation["preferred-citation"], *citation["references"]]
    assert all({"type", "title", "authors"} <= work.keys() for work in works)
    papers = {identifier["value"].removeprefix("arXiv:") for work in works for identifier in work["identifiers"]}
    assert papers == set(re.findall(r"arxiv.org/abs/([\d.]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
