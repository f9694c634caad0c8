"""Models go to a stand-in hub and come back the same; what keeps them from it is one sentence."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Refusal, Repository, StandInHub, point_at, served_to_clients
from huggingface_hub import constants
from processes import environment, run
from safetensors.torch import load_file
from tiny_run import CLASSES, write_images, write_model

import piip
from piip.backbone import PIIPBackbone
from piip.inference.predictor import Predictor
from piip.models import PIIPClassifier
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.model_card import is_generated

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # huggingface-hub 2.4 uploads by its older protocol in a way that its client calls deprecated
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """An empty hub, an empty cache and a token that may write."""
    with served_to_clients(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> PIIPClassifier:
    loaded = load_model(write_model(tmp_path / "written"))
    assert isinstance(loaded, PIIPClassifier)
    return loaded


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(path_or_hub_id: str, **options: object) -> str:
    """Return the message of an error, which is one sentence without the client's own words."""
    with pytest.raises(ValueError, match=r".") as caught:
        piip.from_pretrained(path_or_hub_id, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"Error|Errno|Traceback|Request ID", message)
    return message


def test_a_model_comes_back_the_same(hub: StandInHub, model: PIIPClassifier) -> None:
    address = model.push_to_hub("me/tiny", metadata={"metrics": {"top1": 0.5}}, commit_message="First")
    assert address == f"{hub.address}/me/tiny/commit/{hub.repositories['me/tiny'].branches['main']}"
    assert sorted(hub.repositories["me/tiny"].files("main")) == FILES
    again = piip.from_pretrained("me/tiny")
    assert isinstance(again, PIIPClassifier)
    assert not again.training
    assert again.config == model.config
    assert again.metadata["classes"] == list(CLASSES)
    assert again.metadata["metrics"] == {"top1": 0.5}
    with torch.inference_mode():
        assert torch.equal(model(IMAGES), again(IMAGES))
    half = piip.from_pretrained("me/tiny", dtype="bf16")
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_backbone_comes_back_the_same(hub: StandInHub, model: PIIPClassifier) -> None:
    model.backbone.push_to_hub("me/backbone", private=True, dtype="bf16")
    assert hub.repositories["me/backbone"].private
    again = piip.from_pretrained("me/backbone")
    assert isinstance(again, PIIPBackbone)
    assert again.config == model.backbone.config
    state = model.backbone.state_dict()
    assert all(torch.equal(value, state[name].bfloat16().float()) for name, value in again.state_dict().items())


def test_uploads_of_the_newer_client(hub: StandInHub, model: PIIPClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hf_xet installed, folders go another way; only where large files are stored is not stood in for."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.takes_large_files = False
    address = model.push_to_hub("me/tiny")
    assert address.endswith(f"/me/tiny/commit/{hub.repositories['me/tiny'].branches['main']}")
    assert sorted(hub.repositories["me/tiny"].files("main")) == FILES
    assert piip.from_pretrained("me/tiny").config == model.config


def test_revisions(hub: StandInHub, model: PIIPClassifier) -> None:
    model.push_to_hub("me/tiny")
    first = hub.repositories["me/tiny"].branches["main"]
    model.reset_classifier(5)
    model.push_to_hub("me/tiny", revision="five")
    assert piip.from_pretrained("me/tiny").num_classes == 3
    assert piip.from_pretrained("me/tiny", revision="five").num_classes == 5
    assert piip.from_pretrained("me/tiny", revision=first).num_classes == 3
    assert "classes" not in piip.from_pretrained("me/tiny", revision="five").metadata
    assert "me/tiny has no revision 'six'" in refused("me/tiny", revision="six")


def test_a_card_that_somebody_wrote_stays(hub: StandInHub, model: PIIPClassifier) -> None:
    model.push_to_hub("me/tiny")
    repository = hub.repositories["me/tiny"]
    model.push_to_hub("me/tiny", metadata={"license": "apache-2.0"})
    card = repository.files("main")["README.md"].decode()
    assert is_generated(card)
    assert 'license: "apache-2.0"' in card
    own = card.replace("# tiny", "# My own words")
    repository.commit("main", {"README.md": own.encode()})
    model.push_to_hub("me/tiny", metadata={"metrics": {"top1": 0.25}})
    assert repository.files("main")["README.md"].decode() == own
    assert json.loads(repository.files("main")["config.json"])["metrics"] == {"top1": 0.25}


def test_pickles_are_not_downloaded(hub: StandInHub, model: PIIPClassifier, tmp_path: Path) -> None:
    model.push_to_hub("me/tiny")
    hub.repositories["me/tiny"].commit("main", {"pytorch_model.bin": b"code", "model.pkl": b"code", "x.py": b"code"})
    hub.asked.clear()
    piip.from_pretrained("me/tiny")
    downloaded = {request.rsplit("/", 1)[-1] for request in hub.asked if "/resolve/" in request}
    assert downloaded == set(FILES)


def test_repositories_without_a_model(hub: StandInHub) -> None:
    repository = hub.repositories["me/other"] = Repository()
    repository.commit("main", {"pytorch_model.bin": b"code"})
    assert "me/other on the hub has no config.json and no model*.safetensors" in refused("me/other")
    repository.commit("main", {"config.json": b"{}", "model.safetensors": b""})
    assert "no 'model' field, expected a file written by piip" in refused("me/other")


def test_missing_and_private_repositories(
    hub: StandInHub, model: PIIPClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model.push_to_hub("me/secret", private=True)
    expected = f"{hub.address} has no such public repository"
    assert expected in refused("me/nothing")
    monkeypatch.delenv("HF_TOKEN")
    assert expected in refused("me/secret")
    assert "pass a token with read access" in refused("me/secret", token="hf_wrong")
    assert piip.from_pretrained("me/secret", token=TOKEN, cache_dir=tmp_path / "own").num_classes == 3
    assert (tmp_path / "own" / "models--me--secret").is_dir()
    hub.breaks_with = Refusal(403, "GatedRepo")
    assert f"me/gated is gated: request access at {hub.address}/me/gated" in refused("me/gated")
    hub.breaks_with = Refusal(418)
    assert "answered with status 418 for me/tea" in refused("me/tea")
    with pytest.raises(ValueError, match="answered with status 418 to the upload of me/tea"):
        model.push_to_hub("me/tea")


def test_without_network(hub: StandInHub, model: PIIPClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    model.push_to_hub("me/tiny")
    piip.from_pretrained("me/tiny")
    address = f"http://127.0.0.1:{closed_port()}"
    point_at(monkeypatch, address)
    with torch.inference_mode():
        assert torch.equal(piip.from_pretrained("me/tiny")(IMAGES), model(IMAGES))
    assert f"me/new is not a local directory or in the cache, and {address} is unreachable" in refused("me/new")
    hub.asked.clear()
    piip.from_pretrained("me/tiny", local_files_only=True)
    assert "local_files_only=True was passed and it is not completely in the cache" in refused(
        "me/new", local_files_only=True
    )
    with pytest.raises(ValueError, match=f"^{address} is unreachable, so me/tiny was not uploaded"):
        model.push_to_hub("me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^HF_HUB_OFFLINE is set, so me/tiny cannot be uploaded"):
        model.push_to_hub("me/tiny")


def test_offline_by_environment(hub: StandInHub, model: PIIPClassifier, tmp_path: Path) -> None:
    """The variables are read at import, so a process of its own sees them, and the command line with them."""
    model.push_to_hub("me/tiny")
    piip.from_pretrained("me/tiny")
    pictures = write_images(tmp_path / "pictures", train=1, val=0)
    hub.asked.clear()
    variables = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    script = "import sys; from piip.cli import main; [main(['predict', name, sys.argv[1]]) for name in sys.argv[2:]]"
    done = run(sys.executable, "-c", script, pictures, "me/tiny", "me/new", env=environment(**variables))
    assert len(done.stdout.splitlines()) == len(CLASSES)
    assert done.returncode == 2
    assert done.stderr.startswith("piip: error: me/new is not a local directory, HF_HUB_OFFLINE is set and it is not")
    assert len(done.stderr.splitlines()) == 1
    assert not hub.asked


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("me/tiny", "hf_wrong", r"denied write access to me/tiny with this token \(status 401\)"),
        ("you/tiny", TOKEN, r"denied write access to you/tiny with this token \(status 403\)"),
        ("tiny", TOKEN, "repo_id is 'tiny', expected owner/name"),
    ],
)
def test_uploads_that_are_refused(
    hub: StandInHub, model: PIIPClassifier, repo_id: str, token: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model.push_to_hub(repo_id, token=token)
    assert "\n" not in str(caught.value)
    assert not hub.repositories


@pytest.mark.parametrize("name", ["nothing", "/no/such/place", "./nothing", "a/b/c", "me/no spaces", "../up"])
def test_what_is_neither_directory_nor_id(name: str) -> None:
    assert "not a repository id owner/name" in refused(name)


def test_models_put_together_by_hand_cannot_be_saved(model: PIIPClassifier, tmp_path: Path) -> None:
    parts = model.backbone
    made = PIIPBackbone(parts.branches, parts.interactions, parts.merge, image_sizes=parts.image_sizes)
    with pytest.raises(ValueError, match="built from modules and has no description"):
        made.save_pretrained(tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_directory_keeps_what_the_model_knows(model: PIIPClassifier, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved", metadata={"steps": 3}, dtype="bf16")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == FILES
    assert {value.dtype for value in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.bfloat16}
    assert read_description(tmp_path / "saved")["steps"] == 3
    predictor = Predictor(tmp_path / "saved", device="cpu")
    assert predictor.classes == list(CLASSES)
    assert "is a local directory and has no revision 'old'" in refused(str(tmp_path / "saved"), revision="old")
    piip.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()
