"""Download from and upload to the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined] # of the client it talks with

from piip.serialization.description import CONFIG_NAME
from piip.serialization.model_card import CARD_NAME, require_config, write_card
from piip.serialization.save import save_model

if TYPE_CHECKING:
    from piip.serialization.base import PyramidModel

# no file that can contain code: pickled weights in a repository are not downloaded
FILES = [CONFIG_NAME, "model*.safetensors", "model.safetensors.index.json", CARD_NAME]
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
FAILURES = (ClientError, OSError)  # requests that fail; those of the hub and of the cache are among them


def find_model(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the directory of a saved model, downloading it from the hub if necessary.

    Args:
        path_or_hub_id: A directory, or "owner/name".
        revision: Branch, tag or commit of the repository; None is the main branch.
        cache_dir: Folder of downloads; None is the hub's default cache.
        token: Token with read access to a private repository; None uses that of HF_TOKEN or `hf auth login`.
        local_files_only: Use only earlier downloads; HF_HUB_OFFLINE=1 does the same for all calls.

    Raises:
        ValueError: The model does not exist, the hub is unreachable, or the repository has no model of this library.
    """
    path = Path(path_or_hub_id)
    if path.exists():
        if revision is not None:
            raise ValueError(f"{path} is a local directory and has no revision {revision!r}: remove revision.")
        return path
    hub_id = _hub_id(path_or_hub_id)
    try:
        directory = snapshot_download(
            hub_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=FILES,
            library_name="piip",
        )
    except FAILURES as error:
        raise ValueError(_explain(error, hub_id, revision=revision, local_files_only=local_files_only)) from error
    missing = [name for name in (CONFIG_NAME, "model*.safetensors") if not list(Path(directory).glob(name))]
    if missing:
        raise ValueError(
            f"{hub_id} on the hub has no {' and no '.join(missing)}, so it is not a model of this library; files of "
            "the authors can be converted with `piip convert`."
        )
    return Path(directory)


def find_weights_of(path_or_hub_id: str | Path) -> Path:
    """Return the file or directory of published weights, downloading it from the hub if necessary.

    Args:
        path_or_hub_id: A file, a directory, or "owner/name"; safetensors are preferred to pickles.

    Raises:
        ValueError: There is no such file, or the hub is unreachable.
    """
    path = Path(path_or_hub_id)
    if path.exists():
        return path
    if not HUB_ID.fullmatch(str(path_or_hub_id)):
        raise ValueError(f"There is no file {path}, and it is not a repository id owner/name of the hub.")
    directory = path
    for patterns in (["model*.safetensors", "model.safetensors.index.json"], ["pytorch_model*.bin*"]):
        try:
            directory = Path(snapshot_download(str(path), allow_patterns=patterns, library_name="piip"))
        except FAILURES as error:
            raise ValueError(_explain(error, str(path), revision=None, local_files_only=False)) from error
        if any(file for pattern in patterns for file in directory.glob(pattern)):
            break
    return directory


def save_pretrained(
    model: PyramidModel,
    directory: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: str = "f32",
    hub_id: str | None = None,
) -> None:
    """Write weights, description and card of a model.

    Args:
        model: A model with a description.
        directory: Output directory, created if missing.
        metadata: JSON values to add to the model's metadata, which is updated.
        dtype: "f32" or "bf16" for floating-point weights.
        hub_id: "owner/name" of the repository, for the card.

    Raises:
        ValueError: A model without description, or an unknown dtype.
    """
    require_config(model)
    model.metadata = {**model.metadata, **(metadata or {})}
    save_model(model, directory, model.metadata, dtype=dtype)
    write_card(model, directory, hub_id=hub_id)


def push_to_hub(
    model: PyramidModel,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    metadata: Mapping[str, Any] | None = None,
    dtype: str = "f32",
) -> str:
    """Upload weights, description and card of a model in one commit.

    A card that was edited on the hub is kept.

    Args:
        model: A model with a description.
        repo_id: "owner/name".
        private: Visibility of a new repository.
        token: Token with write access; None uses that of HF_TOKEN or `hf auth login`.
        revision: Branch, created if missing; None is the main branch.
        commit_message: First line of the commit.
        metadata: JSON values to add to the model's metadata.
        dtype: "f32" or "bf16" for floating-point weights.

    Returns:
        URL of the commit.

    Raises:
        ValueError: The model has no description, the name is invalid, or the upload is refused or fails.
    """
    require_config(model)
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id is {repo_id!r}, expected owner/name.")
    api = HfApi(token=token, library_name="piip")
    with tempfile.TemporaryDirectory(prefix="piip-") as directory:
        with _explained_upload(repo_id):
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            _fetch_card(api, repo_id, revision, directory)
        save_pretrained(model, directory, metadata=metadata, dtype=dtype, hub_id=repo_id)
        with _explained_upload(repo_id):
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                allow_patterns=FILES,
                revision=revision,
                commit_message=commit_message,
            )
    return str(commit.commit_url)


def _fetch_card(api: HfApi, hub_id: str, revision: str | None, directory: str) -> None:
    """Download the repository's card to the output directory, so that an edited card is kept."""
    try:
        api.hf_hub_download(hub_id, CARD_NAME, revision=revision, local_dir=directory)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return


def _hub_id(name: str | Path) -> str:
    """Return the id of a repository, or raise an error for other names."""
    if not HUB_ID.fullmatch(str(name)):
        raise ValueError(
            f"There is no directory {name}, and it is not a repository id owner/name of the hub; "
            "expected a model directory such as RUN/model (models of `piip list` are built by piip.create_model)."
        )
    return str(name)


def _explain(error: BaseException, hub_id: str, *, revision: str | None, local_files_only: bool) -> str:
    """Return one sentence on why a download failed and how to fix it."""
    hub, status = constants.ENDPOINT, _status(error)
    if isinstance(error, GatedRepoError):
        return f"{hub_id} is gated: request access at {hub}/{hub_id}, then pass token=... or run `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r}: pass one of its branches, tags or commits, or remove it."
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"There is no directory {hub_id}, and {hub} has no such public repository: check the name, "
            "or pass a token with read access (token=..., HF_TOKEN or `hf auth login`)."
        )
    if local_files_only or constants.HF_HUB_OFFLINE:
        switch = "local_files_only=True was passed" if local_files_only else "HF_HUB_OFFLINE is set"
        return (
            f"{hub_id} is not a local directory, {switch} and it is not completely in the cache: load it once "
            "with network access."
        )
    if isinstance(error.__cause__, FileMetadataError):
        return f"{hub} does not respond like a hub: check HF_ENDPOINT and your proxy."
    if status is not None:
        return f"{hub} answered with status {status} for {hub_id}: try again later."
    return (
        f"{hub_id} is not a local directory or in the cache, and {hub} is unreachable: check the network "
        "(HF_ENDPOINT sets another hub), or copy the model's directory and pass its path."
    )


@contextlib.contextmanager
def _explained_upload(hub_id: str) -> Iterator[None]:
    try:
        yield
    except (*FAILURES, RuntimeError) as error:  # the client wraps errors during the upload of a file
        raise ValueError(_explain_upload(error, hub_id)) from error


def _explain_upload(error: BaseException, hub_id: str) -> str:
    """Return one sentence on why an upload failed and how to fix it."""
    hub, status = constants.ENDPOINT, _status(error)
    if status in (401, 403, 404):
        return (
            f"{hub} denied write access to {hub_id} with this token (status {status}): check the owner's name, and "
            "pass a token with write access (token=..., HF_TOKEN or `hf auth login`)."
        )
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so {hub_id} cannot be uploaded: unset it, or write files with save_pretrained."
    if status is not None:
        return f"{hub} answered with status {status} to the upload of {hub_id}: try again later."
    return (
        f"{hub} is unreachable, so {hub_id} was not uploaded: check the network (HF_ENDPOINT sets another hub) "
        "and the disk for temporary files."
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the hub's response, if there was one."""
    errors = [cause for cause in (error, error.__cause__) if isinstance(cause, HfHubHTTPError)]
    responses = [cause.response for cause in errors if cause.response is not None]  # may be None before hub 1.0
    return responses[0].status_code if responses else None
