"""The wheel, built and installed where nothing of the checkout is in reach."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import processes
import pytest
from packaging.requirements import Requirement
from processes import succeed

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 30_000_000  # five models with their sample images; more belongs on a hub
EXTRAS = {"pytorch_lightning", "onnxruntime", "openvino", "transformers", "supervision", "pytest"}


def run(*command: str | Path, cwd: Path) -> str:
    return succeed(*command, cwd=cwd, env=plain_environment())


def plain_environment() -> dict[str, str]:
    """Return the variables of this process without Python's own, which would lead into the checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "piip", source / "piip", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    return next(folder.glob("piip-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel; its dependencies are read from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    options = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *options, wheel, cwd=folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # .pth files of the folder named here are not read, so an editable install of piip there stays out of reach
    site_packages = folder / "lib" / version / "site-packages"
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return interpreter


def test_wheel_holds_the_whole_package(wheel: Path) -> None:
    files = [path for path in (ROOT / "piip").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("piip-")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
    assert "piip/py.typed" in packed


def test_wheel_works(python: Path, tmp_path: Path) -> None:
    code = (
        "import json, pathlib, sys, piip\n"
        "assert pathlib.Path(piip.__file__).is_relative_to(sys.prefix), piip.__file__\n"
        "from importlib.metadata import metadata\n"
        "facts = metadata('piip')\n"
        "assert facts['License-Expression'] == 'Apache-2.0' and facts['Version'] == piip.__version__\n"
        "print(len(piip.list_models()))\n"
    )
    assert int(run(python, "-c", code, cwd=tmp_path)) > 0
    assert "cost" in run(python.with_name("piip"), "--help", cwd=tmp_path)


def test_wheel_is_small(wheel: Path) -> None:
    assert 1_000_000 < wheel.stat().st_size < MAX_BYTES


def needed(name: str, found: dict[str, Distribution]) -> None:
    """Add an installed distribution and what it needs without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    found[key] = distribution(name)
    for requirement in map(Requirement, found[key].requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)


def link_packages(source: Distribution, site_packages: Path) -> None:
    """Link the top folders and files of a distribution into an environment."""
    for part in {path.parts[0] for path in source.files or [] if path.parts[0] not in ("..", "__pycache__")}:
        target = site_packages / part
        if not target.exists():
            target.symlink_to(Path(str(source.locate_file(part))))


@pytest.fixture(scope="module")
def plain_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it needs, and with nothing else."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    options = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *options, wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run(interpreter, "-c", where, cwd=folder).strip())
    read = "from importlib.metadata import requires; print(*requires('piip'), sep='\\n')"
    found: dict[str, Distribution] = {}
    for requirement in map(Requirement, run(interpreter, "-c", read, cwd=folder).splitlines()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)
    for source in found.values():
        link_packages(source, site_packages)
    return interpreter


@pytest.mark.slow
def test_wheel_works_without_the_extras(plain_python: Path, tmp_path: Path) -> None:
    """List, cost, the demo with its figure, prediction; training says which extra it needs."""
    code = "import pkgutil; print(*(found.name for found in pkgutil.iter_modules()))"
    there = run(plain_python, "-c", code, cwd=tmp_path)
    assert EXTRAS.isdisjoint(there.split()), "the extras are within reach"
    piip = plain_python.with_name("piip")
    assert "piip_tsb_368_192_128.deit1_in1k" in run(piip, "list", "*in1k", cwd=tmp_path)
    assert "interactions" in run(piip, "cost", "piip_tsb_368_192_128.deit1_in1k", cwd=tmp_path)
    run(piip, "demo", "--task", "classification", "--out", "demo.png", "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    code = "from piip.demo import ASSETS; print(ASSETS / 'model'); print(ASSETS / 'images')"
    model, images = run(plain_python, "-c", code, cwd=tmp_path).split()
    assert run(piip, "predict", model, images, "--device", "cpu", cwd=tmp_path).count(".jpg") > 100
    for name in ("train", "evaluate", "export", "convert", "explain", "plan", "app"):
        assert "usage" in run(piip, name, "--help", cwd=tmp_path)
    (tmp_path / "recipe.yaml").write_text((ROOT / "recipes/classification/landcover_piip.yaml").read_text())
    done = processes.run(piip, "train", "recipe.yaml", cwd=tmp_path, env=plain_environment())
    assert done.returncode == 2
    assert 'pip install "piip[train]"' in done.stderr
