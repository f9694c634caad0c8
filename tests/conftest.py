"""What tests of several files start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import write_images

OLD_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Skip what the library says that the PyTorch at hand is too old for."""
    try:
        return (yield)
    except Exception as error:
        if OLD_TORCH and "needs PyTorch 2." in str(error):
            pytest.skip(next(line for line in str(error).splitlines() if "needs PyTorch 2." in line))
        raise


def pytest_configure() -> None:
    """Give each of several workers one thread, in the processes that it starts too: they share the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


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
