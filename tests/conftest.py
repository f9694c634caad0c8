"""What tests of several files start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import write_images


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and beside other work only then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of image folders."""
    return write_images(tmp_path_factory.mktemp("images"))
