"""`piip app`: what answers the page, without gradio, and the page in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import write_model

from piip.app.limits import Limits, deadline, read_upload
from piip.app.served import Settings
from piip.app.service import Service, shipped_samples
from piip.cli import main
from piip.cost import estimate_cost
from piip.data.image_reading import AS_STORED
from piip.demo.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
NUCLEI = TASKS["instances"].assets / "images" / "nuclei_3f9fc8e6.png"


def write_bomb(path: Path, side: int = 30_000) -> Path:
    """Write a PNG of zeros with one bit per pixel: small as a file, 900 million pixels."""
    rows = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def picture(path: Path, height: int = 40, width: int = 60) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    model = write_model(tmp_path_factory.mktemp("model"))
    service = Service([str(model), str(TASKS["instances"].assets / "model")], device="cpu")
    yield service
    service.close()


def read(path: Path, limits: Limits) -> Image.Image:
    return read_upload(path, limits, upright=True, options=AS_STORED)


def test_uploads_are_limited(tmp_path: Path) -> None:
    limits = Limits(upload_bytes=500_000, image_pixels=10_000)
    assert read(picture(tmp_path / "good.png"), limits).size == (60, 40)
    with pytest.raises(ValueError, match=r"has 120 x 100 pixels, expected at most 0.01 million pixels"):
        read(picture(tmp_path / "large.png", 100, 120), limits)
    (tmp_path / "heavy.png").write_bytes(bytes(600_000))
    with pytest.raises(ValueError, match=r"The file has 0.6 MB, expected at most 0.5 MB"):
        read(tmp_path / "heavy.png", limits)
    with pytest.raises(ValueError, match="far too large"):
        read(write_bomb(tmp_path / "bomb.png"), limits)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="not an image") as caught:
        read(tmp_path / "text.png", limits)
    assert str(tmp_path) not in str(caught.value)
    cut = (tmp_path / "good.png").read_bytes()[:200]
    (tmp_path / "cut.png").write_bytes(cut)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read(tmp_path / "cut.png", limits)
    assert str(tmp_path) not in str(caught.value)


def test_time_is_limited() -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    with deadline(model, 60):
        model(torch.zeros(1))
    with deadline(model, -1), pytest.raises(ValueError, match="more than -1 seconds"):
        model(torch.zeros(1))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_classification(service: Service, tmp_path: Path) -> None:
    name = next(iter(service.models))
    path = picture(tmp_path / "my image.png")
    answer = service.predict(name, str(path), Settings())
    assert answer.text.split()[0] in service.models[name].classes
    assert [image.size for image, _ in answer.views] == [(24, 24), (32, 32)]
    assert answer.views[1][1] == "branch 1: 32 x 32"
    values = json.loads(answer.json_file.read_text())
    assert values["images"][0]["file_name"] == values["images"][0]["path"] == "my image.png"
    assert (values["images"][0]["width"], values["images"][0]["height"]) == (60, 40)
    assert values["images"][0]["label"] == answer.text.split()[0]
    larger = service.predict(name, str(path), Settings(scale=2.0))
    assert [image.size for image, _ in larger.views] == [(48, 48), (64, 64)]
    served = service.models[name]
    assert served.prepare(Image.open(path), Settings()).shape[-1] == 32  # the setting of one request stays there


def test_costs_follow_the_resolution(service: Service, tmp_path: Path) -> None:
    name = next(iter(service.models))
    model = service.models[name].model

    def total(text: str) -> float:
        return float(re.findall(r"([\d.e-]+) G multiply-adds", text)[0])

    text = service.cost(name, None, Settings())
    assert total(text) == pytest.approx(estimate_cost(model, image_size=32).macs / 1e9, rel=0.01)
    assert "32 x 32 pixels" in text
    assert "interactions" in text
    assert "64 x 64 pixels" in service.cost(name, None, Settings(scale=2.0))


def test_detection_threshold_tiles_and_scale(service: Service, tmp_path: Path) -> None:
    name = list(service.models)[1]
    with Image.open(NUCLEI) as whole:
        whole.convert("RGB").crop((100, 100, 228, 196)).save(tmp_path / "cells.png")
    path = str(tmp_path / "cells.png")
    usual = service.predict(name, path, Settings())
    assert "128 x 96" in usual.views[1][1]
    strict = service.predict(name, path, Settings(threshold=0.95))
    counts = [int(answer.text.split()[0]) for answer in (usual, strict)]
    assert counts[0] > counts[1]
    values = [json.loads(answer.json_file.read_text()) for answer in (usual, strict)]
    assert len(values[0]["annotations"]) == len(values[1]["annotations"]) > counts[0]  # of any score
    larger = json.loads(service.predict(name, path, Settings(scale=1.5)).json_file.read_text())
    assert (larger["images"][0]["width"], larger["images"][0]["height"]) == (128, 96)  # in pixels of the image
    assert "6 tiles of 64 x 64 pixels" in service.cost(name, path, Settings(tile=64))
    assert int(service.predict(name, path, Settings(tile=64)).text.split()[0]) > 3


def test_requests_that_are_too_large(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = list(service.models)[1]
    path = str(picture(tmp_path / "large.png", 500, 700))
    monkeypatch.setattr(service, "limits", Limits(input_pixels=300_000, tiles=10))
    with pytest.raises(ValueError, match=r"would see 0.4 million pixels at once, expected at most 0.3"):
        service.predict(dense, path, Settings())
    with pytest.raises(ValueError, match=r"would see 1.4 million pixels"):
        service.cost(dense, path, Settings(scale=2.0))
    with pytest.raises(ValueError, match=r"tiles, expected at most 10"):
        service.predict(dense, path, Settings(tile=64))
    with pytest.raises(ValueError, match="There is no image"):
        service.predict(dense, None, Settings())
    with pytest.raises(ValueError, match="There is no model 'other'"):
        service.predict("other", path, Settings())


def test_files_of_old_answers_are_deleted(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piip.app.service.KEPT_ANSWERS", 2)
    name, path = next(iter(service.models)), str(picture(tmp_path / "image.png"))
    answers = [service.predict(name, path, Settings()) for _ in range(3)]
    assert [answer.json_file.exists() for answer in answers] == [False, True, True]


def test_samples_are_there() -> None:
    samples = shipped_samples()
    assert {name for _, name in samples} == {*TASKS}
    assert all(Path(path).is_file() for path, _ in samples)


def test_the_command_without_gradio(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main(["app"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == 'piip: error: This needs gradio: pip install "piip[app]".\n'


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and find_spec("playwright") and find_spec("gradio")),
    reason="needs Chromium, and gradio and playwright (pip install gradio playwright)",
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run the server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "piip", "app", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline().startswith("Open http")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


class User:
    """One user in a browser context of their own."""

    def __init__(self, browser: Any, address: str) -> None:
        self.page = browser.new_context(viewport={"width": 1280, "height": 1100}, accept_downloads=True).new_page()
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or "none"))
        self.page.set_default_timeout(120_000)
        self.page.goto(address)
        self.page.wait_for_selector("#predict")

    def upload(self, path: Path) -> None:
        remove = self.page.locator("#image button[aria-label='Remove Image']")
        if remove.count():
            remove.click()
        self.page.set_input_files("#image input[type=file]", str(path))
        self.page.wait_for_selector("#image img", state="attached")  # the browser shows no bombs

    def start(self) -> None:
        self.page.click("#predict")

    def result(self, pattern: str) -> str:
        """Wait for a result of a form."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            text: str = self.page.input_value("#status textarea, #status input")
            if re.search(pattern, text):
                return text
            self.page.wait_for_timeout(200)
        raise AssertionError(f"no result like {pattern!r}, but {text!r}")

    def choose(self, slider: str, value: float) -> None:
        field = self.page.locator(f"#{slider} input[type=number]")
        field.fill(str(value))
        field.press("Enter")
        field.blur()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@needs_browser
@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, address: str, tmp_path: Path) -> None:
    user = User(browser, address)
    user.start()
    assert (
        user.result("^Error") == "Error: There is no image: upload one, paste one, use the webcam or choose a sample."
    )
    user.upload(NUCLEI)
    user.start()
    usual = int(user.result("instances").split()[0])
    user.page.wait_for_selector("#drawn img")
    assert user.page.locator("#views img").count() == 2
    assert "704 x 544 pixels" in user.page.inner_text("#cost")
    user.choose("scale", 0.5)  # the cost follows at once, the prediction on demand
    user.page.wait_for_selector("#cost :text('352 x 288 pixels')")
    with user.page.expect_download() as caught:
        user.page.click("#download-json")
    values = json.loads(Path(caught.value.path()).read_text())
    assert values["images"][0]["file_name"] == NUCLEI.name
    user.choose("threshold", 0.95)
    user.start()
    assert int(user.result(r"score >= 0.95").split()[0]) < usual
    user.page.wait_for_selector("#views :text('branch 1: 352 x 288')")

    user.page.locator("button.gallery-item").nth(3).click()
    user.page.wait_for_function("document.querySelector('#model input').value == 'segmentation'")
    user.start()
    assert float(user.result(r"water \d").split("water ")[1].split()[0]) > 0.1
    assert user.hosts <= {"127.0.0.1", "none"}  # data and blobs have no host


@needs_browser
@pytest.mark.slow
def test_bad_files_in_a_browser(browser: Any, address: str, tmp_path: Path) -> None:
    user = User(browser, address)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "heavy.png").write_bytes(os.urandom(Limits().upload_bytes + 1_000_000))
    user.upload(write_bomb(tmp_path / "bomb.png"))
    user.start()
    assert "million pixels" in user.result("^Error.*pixels")
    user.upload(tmp_path / "text.png")
    user.start()
    assert "not an image" in user.result("^Error.*not")
    user.page.locator("#image button[aria-label='Remove Image']").click()
    user.page.set_input_files("#image input[type=file]", str(tmp_path / "heavy.png"))
    user.page.wait_for_selector(":text('exceed the maximum allowed size')")
    user.upload(NUCLEI)  # and the page still works
    user.start()
    assert user.result("instances")
    assert user.hosts <= {"127.0.0.1", "none"}  # data and blobs have no host


@needs_browser
@pytest.mark.slow
def test_two_users_at_once(browser: Any, address: str) -> None:
    users = [User(browser, address), User(browser, address)]
    with Image.open(NUCLEI) as image:
        assert image.size == (696, 520)
    for user in users:
        user.upload(NUCLEI)
    users[0].choose("threshold", 0.9)
    for user in users:
        user.start()
    results = [user.result("instances") for user in users]
    assert "score >= 0.9" in results[0]
    assert "score >= 0.5" in results[1]
