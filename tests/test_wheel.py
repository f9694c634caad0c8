"""The wheel, built and installed where nothing of the checkout is in reach."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from processes import succeed

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return succeed(*command, cwd=cwd, env=env)


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
