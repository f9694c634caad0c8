"""The Triton kernels of deformable attention: by Triton's interpreter without a GPU, and on one where there is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import environment, succeed
from triton_sampling_checks import DTYPES, SHAPES, inputs, sample

CHECKS = Path(__file__).with_name("triton_sampling_checks.py")
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 1e-3}


def run_checks(argument: str, **variables: str) -> str:
    return succeed(sys.executable, "-W", "error", CHECKS, argument, env=environment(**variables))


@pytest.fixture(scope="module", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    pytest.importorskip("triton")
    interpreted = {"TRITON_INTERPRET": "1"} if request.param == "cpu" else {}
    return json.loads(run_checks(request.param, **interpreted).splitlines()[-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_the_portable_provider_forward_and_backward(
    found: dict[str, Any], dtype: str, shape: str
) -> None:
    assert found[f"{dtype} {shape}"] < TOLERANCE[dtype]


def test_gradients_equal_finite_differences(found: dict[str, Any]) -> None:
    assert found["slopes"] < 1e-3


def test_a_compiled_graph_is_whole_and_computes_the_same(found: dict[str, Any]) -> None:
    assert found["compiled"] < 1e-5


def test_points_outside_read_zeros_and_nan_stays_where_it_is(found: dict[str, Any]) -> None:
    assert found["outside"] == 0
    assert found["finite beside NaN"]


def test_tensors_need_not_be_contiguous(found: dict[str, Any]) -> None:
    assert found["not contiguous"] == 0


def test_what_the_kernels_do_not_take_is_refused(found: dict[str, Any]) -> None:
    assert "got value, weights and locations in torch.float64" in found["double"]
    assert "torch.bfloat16, torch.float32 and torch.float32; expected value and weights alike" in found["mixed"]
    assert "heads of at most 256 channels, got 264" in found["too wide"]


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_checks("compile", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def test_a_cpu_is_refused() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="Provider 'triton' runs on GPUs, value is on cpu: choose 'portable'"):
        sample("odd", *inputs("odd", torch.float32, "cpu"))


def test_without_triton_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "piip.ops.triton_sampling", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="Provider 'triton' needs Triton, which cannot be imported"):
        sample("odd", *inputs("odd", torch.float32, "cpu"))
