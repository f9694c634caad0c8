"""A stand-in for the Hugging Face hub: the requests that pushing and loading a model make, answered from memory."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, file_download
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

try:
    from huggingface_hub.utils import close_session
except ImportError:  # huggingface-hub before 1.0
    from huggingface_hub.utils import reset_sessions as close_session

TOKEN = "hf_writes"
OWNER = "me"


@dataclass
class Repository:
    """Branches are commits, commits are files; contents of large files are kept beside."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def commit(self, revision: str, changes: dict[str, bytes]) -> str:
        files = {**self.files(revision), **changes}
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[revision] = oid
        return oid


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", **body: str) -> None:
        super().__init__(code)
        self.status, self.code, self.body = status, code, body


class StandInHub(ThreadingHTTPServer):
    """The hub's memory; `asked` lists every request as "METHOD path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.breaks_with: Refusal | None = None  # answers everything
        self.takes_large_files = True  # apart from commits

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve() -> Iterator[StandInHub]:
    hub = StandInHub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Do what HF_ENDPOINT does, which is read once at import."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):  # which keeps a copy before huggingface-hub 1.0
        address_of_files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address_of_files, raising=False)


@contextmanager
def served_to_clients(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[StandInHub]:
    """An empty hub, an empty cache in a folder and a token that may write."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # the stand-in speaks the older protocol
    disable_progress_bars()
    with serve() as server:
        point_at(monkeypatch, server.address)
        yield server
        close_session()
    enable_progress_bars()


def large_oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInHub

    def log_message(self, format: str, *args: Any) -> None:
        self.server.asked.append(f"{self.command} {urlsplit(self.path).path}")

    def handle_request(self) -> None:
        body = self.read_body()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            if self.server.breaks_with:
                raise self.server.breaks_with
            status, headers, content = self.answer(parts, body)
        except Refusal as refusal:
            status, headers = refusal.status, {"X-Error-Code": refusal.code}
            content = json.dumps(refusal.body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 - names of the base class

    def answer(self, parts: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if parts[0] == "large":
            if self.command == "PUT":
                assert large_oid(body) == parts[1]
                self.server.large[parts[1]] = body
                return 200, {}, b""
            return 200, {}, self.server.large[parts[1]]
        if parts[2:3] == ["resolve"]:
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return 200, {"Content-Type": "application/json"}, json.dumps(self.call(parts, body)).encode()

    def call(self, parts: list[str], body: bytes) -> Any:
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            front = json.loads(body)["content"].split("---\n")[1]
            assert yaml.safe_load(front)["library_name"] == "piip"
            return {}
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.server.address}/large/{item['oid']}"}}
            return {"transfer": "basic", "objects": objects}
        if parts[:2] != ["api", "models"]:
            raise Refusal(404)  # e.g. what the client asks to describe itself
        name = f"{parts[2]}/{parts[3]}"
        what, revision = [*parts[4:], "revision", "main"][:2]
        if what in ("preupload", "commit", "branch"):
            self.check_right(parts[2])
        repository = self.find(name)
        if what == "branch":
            if revision in repository.branches:
                raise Refusal(409)
            repository.branches[revision] = repository.branches["main"]
            return {}
        if what == "preupload":
            files = json.loads(body)["files"]
            apart = ".safetensors" if self.server.takes_large_files else "nothing"
            modes = {file["path"]: "lfs" if file["path"].endswith(apart) else "regular" for file in files}
            return {
                "files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            }
        if what == "commit":
            oid = repository.commit(revision, self.changes(body))
            return {"commitOid": oid, "commitUrl": f"{self.server.address}/{name}/commit/{oid}"}
        files = self.files(repository, revision)
        if what == "tree":
            return [self.entry(path, content) for path, content in files.items()]
        sha = repository.branches.get(revision, revision)
        return {"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]}

    def create(self, wanted: dict[str, Any]) -> dict[str, str]:
        self.check_right(wanted["organization"])
        name = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.server.address}/{name}"
        if name in self.server.repositories:
            raise Refusal(409, url=url)
        private = wanted.get("visibility") == "private" or wanted.get("private", False)  # newer and older clients
        self.server.repositories[name] = Repository(private=private)
        return {"url": url}

    def check_right(self, owner: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401)
        if owner != OWNER:
            raise Refusal(403)

    def find(self, name: str) -> Repository:
        may_read = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not may_read):
            raise Refusal(404 if may_read else 401, "RepoNotFound")
        return repository

    def files(self, repository: Repository, revision: str) -> dict[str, bytes]:
        try:
            return repository.files(revision)
        except KeyError:
            raise Refusal(404, "RevisionNotFound") from None

    def changes(self, body: bytes) -> dict[str, bytes]:
        found = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                found[value["path"]] = self.server.large[value["oid"]]
        return found

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": large_oid(content), "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        repository = self.find(name)
        files = self.files(repository, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound")
        content = files[path]
        headers = {"X-Repo-Commit": repository.branches.get(revision, revision), "ETag": f'"{large_oid(content)}"'}
        if not path.endswith(".safetensors"):
            return 200, headers, content
        self.server.large[large_oid(content)] = content
        elsewhere = self.server.address.replace("127.0.0.1", "localhost")  # large files come from another host
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return 302, {**headers, **linked, "Location": f"{elsewhere}/large/{large_oid(content)}"}, b""
