"""Models from and to the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from torch import nn

from piip.serialization.base import DescribedModel
from piip.serialization.load import CONFIG_NAME, load_model, save_model
from piip.serialization.model_card import CARD_NAME, described, write_card

# no file that can carry code: pickled weights in a repository are not even downloaded
FILES = [CONFIG_NAME, "model*.safetensors", "model.safetensors.index.json", CARD_NAME]
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
FAILURES = (ClientError, OSError)  # requests that fail; those of the hub and of the cache are among them


def from_pretrained(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "f32",
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Load a saved model from a directory or from the Hugging Face hub, in evaluation mode.

    Args:
        path_or_hub_id: A directory written by `save_pretrained`, `piip train` or `piip convert`, or "owner/name".
        revision: Branch, tag or commit of the repository; None is the main branch.
        device: Where to put the model.
        dtype: "f32" or "bf16", whatever the file holds.
        cache_dir: Where downloads are kept; None is the hub's own cache.
        token: Read access to a private repository; None takes the one of HF_TOKEN or `hf auth login`.
        local_files_only: Take what was downloaded before and ask nobody; HF_HUB_OFFLINE=1 does the same for all.

    Returns:
        The model: `config`, `pretrained_cfg` and `metadata` say what it is.

    Raises:
        ValueError: Nothing there, nothing to be reached, or not a saved model.

    Example:
        >>> model = from_pretrained("runs/landcover/best")
    """
    directory = find_model(
        path_or_hub_id, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return load_model(directory, device=device, dtype=dtype)


def find_model(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the directory of a saved model, downloading it where it is on the hub.

    Args:
        path_or_hub_id: A directory, or "owner/name".
        revision: See `from_pretrained`.
        cache_dir: See `from_pretrained`.
        token: See `from_pretrained`.
        local_files_only: See `from_pretrained`.

    Raises:
        ValueError: Nothing there, nothing to be reached, or a repository without a model of this library.
    """
    path = Path(path_or_hub_id)
    if path.exists():
        if revision is not None:
            raise ValueError(f"{path} is a directory here and has no revision {revision!r}: leave revision out.")
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
            f"{hub_id} on the hub has no {' and no '.join(missing)}, so it holds no model of this library; files of "
            "the authors are turned into one by `piip convert`."
        )
    return Path(directory)


def save_pretrained(
    model: DescribedModel,
    directory: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: str = "f32",
    hub_id: str | None = None,
) -> None:
    """Write weights, description and card of a model.

    Args:
        model: With a description.
        directory: Made where missing.
        metadata: JSON values to add to the model's own, and to keep there.
        dtype: "f32" or "bf16" for floating-point weights.
        hub_id: "owner/name" where the files will be found.

    Raises:
        ValueError: A model without description, or an unknown dtype.
    """
    described(model)
    model.metadata = {**model.metadata, **(metadata or {})}
    save_model(model, directory, model.metadata, dtype=dtype)
    write_card(model, directory, hub_id=hub_id)


def push_to_hub(
    model: DescribedModel,
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

    A card that somebody wrote or changed on the hub stays as it is.

    Args:
        model: With a description.
        repo_id: "owner/name".
        private: Visibility of a repository that is made.
        token: Write access; None takes the one of HF_TOKEN or `hf auth login`.
        revision: Branch, made where missing; None is the main one.
        commit_message: First line of the commit.
        metadata: JSON values to add to the model's own.
        dtype: "f32" or "bf16" for floating-point weights.

    Returns:
        Address of the commit.

    Raises:
        ValueError: A model without description, a wrong name, no right to write there, or no network.
    """
    described(model)
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
    """Put the repository's card where the new one will be written, which leaves a changed one alone."""
    try:
        api.hf_hub_download(hub_id, CARD_NAME, revision=revision, local_dir=directory)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return


def _hub_id(name: str | Path) -> str:
    """Return the id of a repository, or say that something is neither that nor a directory."""
    if not HUB_ID.fullmatch(str(name)):
        raise ValueError(
            f"There is no directory {name}, and it is no repository of the hub either, which would read owner/name; "
            "expected a model directory such as RUN/model (models of `piip list` are built by piip.create_model)."
        )
    return str(name)


def _explain(error: BaseException, hub_id: str, *, revision: str | None, local_files_only: bool) -> str:
    """Say in one sentence why a model could not be had, and what helps."""
    hub, status = constants.ENDPOINT, _status(error)
    if isinstance(error, GatedRepoError):
        return f"{hub_id} is gated: ask for access at {hub}/{hub_id}, then pass token=... or run `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r}: pass one of its branches, tags or commits, or leave it out."
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"There is no directory {hub_id}, and {hub} has no such repository or keeps it private: check the name, "
            "or pass a token that may read it (token=..., HF_TOKEN or `hf auth login`)."
        )
    if local_files_only or constants.HF_HUB_OFFLINE:
        switch = "local_files_only=True was passed" if local_files_only else "HF_HUB_OFFLINE is set"
        return (
            f"{hub_id} is no directory here, {switch} and it is not, or not completely, in the cache: load it once "
            "with the network allowed."
        )
    if isinstance(error.__cause__, FileMetadataError):
        return f"{hub} does not answer as a hub does: check HF_ENDPOINT and the proxy between here and there."
    if status is not None:
        return f"{hub} answered with status {status} for {hub_id}: try again later."
    return (
        f"{hub_id} is no directory here and not in the cache, and {hub} cannot be reached: check the network "
        "(HF_ENDPOINT names another hub), or copy the model's directory here and pass its path."
    )


@contextlib.contextmanager
def _explained_upload(hub_id: str) -> Iterator[None]:
    try:
        yield
    except (*FAILURES, RuntimeError) as error:  # the client wraps what breaks the upload of a file
        raise ValueError(_explain_upload(error, hub_id)) from error


def _explain_upload(error: BaseException, hub_id: str) -> str:
    """Say in one sentence why a model could not be uploaded, and what helps."""
    hub, status = constants.ENDPOINT, _status(error)
    if status in (401, 403, 404):
        return (
            f"{hub} lets nobody write to {hub_id} with this token (status {status}): check the owner's name, and pass "
            "a token with the right to write (token=..., HF_TOKEN or `hf auth login`)."
        )
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so {hub_id} cannot be uploaded: unset it, or write files by save_pretrained."
    if status is not None:
        return f"{hub} answered with status {status} to the upload of {hub_id}: try again later."
    return (
        f"{hub} cannot be reached, so {hub_id} was not uploaded: check the network (HF_ENDPOINT names another hub) "
        "and the disk for temporary files."
    )


def _status(error: BaseException) -> int | None:
    """Return the status of the hub's answer where there was one."""
    answers = [cause for cause in (error, error.__cause__) if isinstance(cause, HfHubHTTPError)]
    return answers[0].response.status_code if answers else None
