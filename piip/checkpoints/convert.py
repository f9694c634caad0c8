"""Conversion of published weights to a model directory: whole models of the authors, or one network into one branch.

Tensors are read, renamed and written one at a time, so a model is never in memory as a whole. No code in published
files is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from piip.build import build_model
from piip.checkpoints.official import OfficialModel, build_released
from piip.checkpoints.reading import open_checkpoint
from piip.checkpoints.sources import fits, has_head, one_branch, own_facts, own_names, own_stream, whole_model
from piip.checkpoints.unwrapping import FoundWeights, find_weights
from piip.config import HeadConfig, ModelConfig
from piip.data.benchmarks import benchmark_metadata
from piip.data.imagenet import NUM_CLASSES, imagenet_metadata
from piip.device import without_values
from piip.serialization.description import CONFIG_NAME, read_description, write_description
from piip.serialization.model_card import write_card
from piip.serialization.save import DTYPES, stored_dtype
from piip.serialization.weights import MAX_SHARD_BYTES, Progress, StoredTensor, TensorFacts, open_weights, write_weights
from piip.zoo.create import model_config, published_config
from piip.zoo.published import published_facts, published_results

SHOWN = 6  # names listed in the summary
SEED = 0  # branches that no file has been loaded into yet
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Conversion:
    """Summary of a conversion.

    Args:
        model: The model's name.
        out: The directory.
        files: Names of the weight files in it.
        tensors: Number of tensors written.
        nbytes: Their size in bytes.
        prefix: Prefix of the model's names in the file.
        wrappings: Keys under which the weights were nested.
        left_out: Number of tensors of other parts, by part.
        branch: The branch that was loaded, or None for a whole model.
        network: The layout of the single network.
        resized: Resized tables and kernels of the branch.
        initial: Tensors of the branch that are not in the file.
    """

    model: str
    out: Path
    files: tuple[str, ...]
    tensors: int
    nbytes: int
    prefix: str = ""
    wrappings: tuple[str, ...] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    branch: int | None = None
    network: str | None = None
    resized: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {**dataclasses.asdict(self), "out": str(self.out)}


def convert_checkpoint(
    file: str | Path,
    out: str | Path,
    *,
    model: str,
    branch: int | None = None,
    dtype: str = "keep",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Conversion:
    """Convert published weights to a directory that `load_model` reads.

    Args:
        file: A checkpoint: PyTorch, safetensors, `.npz`, or a directory or index file of a sharded checkpoint.
        out: Output directory: new, empty, or written by an earlier conversion for the same model. With `branch` the
            other branches of such a directory stay unchanged.
        model: One of `list_models()`, or the name of an official record.
        branch: Load one network's weights into this branch; 0 is the largest network. Branches not yet loaded have
            random weights.
        dtype: "keep", "f32" or "bf16" for floating-point weights.
        max_shard_bytes: Maximum size of a weight file before splitting.
        progress: Called with bytes written and total bytes.

    Returns:
        Summary of converted tensors and tensors left out.

    Raises:
        ValueError: The model or an option is unknown, the file is unreadable or contains code, the weights belong to
            another model (the message names the most similar one), or the directory has other contents.
    """
    if dtype not in ("keep", *DTYPES):
        raise ValueError(f"dtype is {dtype!r}, expected one of keep, {', '.join(DTYPES)}.")
    config = model_config(model)
    if branch is not None and not 0 <= branch < len(config.branches):
        raise ValueError(f"branch is {branch}, {model} has branches 0 (largest network) to {len(config.branches) - 1}.")
    out = Path(out)
    earlier = _earlier_conversion(out, model)
    weights = find_weights(open_checkpoint(file), source=str(file))
    if branch is None:
        official, config = _for_file(weights, model)
        source = whole_model(weights, official, source=str(file), model=model)
    else:
        official, config = _for_directory(earlier, model)
        source = one_branch(weights, official, branch, source=str(file), model=model)
        is_filled = any(entry["branch"] in (None, branch) for entry in earlier.get("converted", []))
        again = own_names(official, source.initial) if is_filled else []
        source = dataclasses.replace(source, base=_base(out, config, again) if earlier else _random_start(config))
    facts = {
        name: TensorFacts(fact.shape, stored_dtype(fact.dtype, dtype))
        for name, fact in own_facts(official, source).items()
    }
    stream = ((name, tensor.to(facts[name].dtype)) for name, tensor in own_stream(official, source))
    with _made(out):
        files = write_weights(out, facts, stream, max_shard_bytes=max_shard_bytes, progress=progress)
        kept = earlier.get("converted", []) if branch is not None else []
        history = [*(entry for entry in kept if entry["branch"] != branch), {"file": Path(file).name, "branch": branch}]
        _write_facts(out, config, {"name": model, "converted": history})
    nbytes = sum(fact.nbytes for fact in facts.values())
    return Conversion(model, out, tuple(files), len(facts), nbytes, branch=branch, **source.result)


def format_conversion(done: Conversion) -> str:
    """Return the summary as text."""
    what = f"{done.model}" if done.branch is None else f"{done.network} into branch {done.branch} of {done.model}"
    path = " > ".join([*done.wrappings, *([f"{done.prefix}*"] if done.prefix else [])])
    lines = [f"Converted {what}" + (f", found under {path}" if path else "")]
    if done.resized:
        lines.append(f"Resized: {_listed(done.resized)}")
    if done.initial:
        lines.append(f"Not in the file, initialised: {_listed(done.initial)}")
    if done.left_out:
        parts = ", ".join(f"{part} ({count})" for part, count in done.left_out.items())
        lines.append(f"Left out, by part and number of tensors: {parts}")
    files = done.files[0] if len(done.files) == 1 else f"{len(done.files) - 1} files and their index"
    lines.append(f"Written: {done.tensors} tensors, {done.nbytes / 1e9:.2f} GB, {files} in {done.out}")
    lines.append(f'Load it with piip.from_pretrained("{done.out}")')
    return "\n".join(lines)


def _listed(names: tuple[str, ...]) -> str:
    """Return names as text, with the names of blocks merged."""
    short = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names))
    more = f" and {len(short) - SHOWN} more" if len(short) > SHOWN else ""
    return ", ".join(short[:SHOWN]) + more


@contextlib.contextmanager
def bytes_bar(title: str) -> Iterator[Progress | None]:
    """Show a progress bar if stderr is a terminal.

    Args:
        title: Text before the bar.

    Yields:
        Function of bytes done and total bytes; None without a terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def parse_size(text: str) -> int:
    """Read a size such as "5GB", "500 MB" or "1.5GiB" as bytes.

    Raises:
        ValueError: The text is not a positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B)\s*", text, flags=re.IGNORECASE)
    size = int(float(found.group(1)) * UNITS.get(found.group(2).upper(), 0)) if found else 0
    if size < 1:
        raise ValueError(f"max_shard_size is {text!r}, expected a size such as 5GB or 500MB.")
    return size


def _earlier_conversion(out: Path, model: str) -> dict[str, Any]:
    """Return the description of an earlier conversion, or an empty one; raise an error for other contents."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    if not (out / CONFIG_NAME).is_file():
        raise ValueError(f"{out} exists and is not a converted model: choose a new directory, or empty this one.")
    description = read_description(out)
    if "converted" not in description:
        raise ValueError(f"{out} holds a model that `piip convert` did not write: choose a new directory.")
    if description.get("name") != model:
        raise ValueError(f"{out} holds {description.get('name')}, not {model}: choose another directory.")
    return description


@contextlib.contextmanager
def _made(out: Path) -> Iterator[None]:
    """Create a directory, and remove it if nothing could be written."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not any(out.iterdir()):
            out.rmdir()


def _for_file(weights: FoundWeights, model: str) -> tuple[OfficialModel, ModelConfig]:
    """Build the model for a whole file, without allocating weights.

    A multimodal model has no projector if the file has none. The code of the four-branch detectors uses branch 3's
    network for branch 4 (`docs/official.md`); for a file with the intended network, that network is built.
    """
    config, published = model_config(model), published_config(model)
    with without_values():
        official = build_released(model, with_head=has_head(weights.tensors))
        if published.branches != config.branches and not fits(weights, official):
            meant = build_released(model, as_published=True)
            if fits(weights, meant):
                return meant, dataclasses.replace(published, resize=config.resize)
    has_no_head = official.config.head.task == "features"
    return official, dataclasses.replace(config, head=HeadConfig()) if has_no_head else config


def _for_directory(earlier: dict[str, Any], model: str) -> tuple[OfficialModel, ModelConfig]:
    """Build the model of a directory, without allocating weights; see `_for_file` for its variants."""
    named = model_config(model)
    config = ModelConfig.from_dict(earlier["model"]) if earlier else named
    with without_values():
        official = build_released(
            model,
            with_head=config.head.task not in ("features", "classification"),
            as_published=config.branches != named.branches,
        )
    return official, config


def _write_facts(out: Path, config: ModelConfig, metadata: dict[str, Any]) -> None:
    """Write config.json and the model card, with classes and image preparation for models with a head."""
    with without_values():
        model = build_model(config)
    model.metadata = metadata | {"published": published_facts(metadata)}
    if config.head.task == "classification" and config.head.num_classes == NUM_CLASSES:
        model.metadata |= imagenet_metadata(config)
    if config.head.is_dense:
        model.metadata |= benchmark_metadata(config, published_results(metadata["name"]).evaluation)
    write_description(out, config, model.pretrained_cfg, model.metadata)
    write_card(model, out)


def _base(out: Path, config: ModelConfig, again: list[str]) -> dict[str, StoredTensor]:
    """Open the tensors of an earlier conversion, except those that are initialised instead of kept."""
    base = open_weights(out)
    if again:
        built = _random_start(config)
        base |= {name: built[name] for name in again}
    return base


def _random_start(config: ModelConfig) -> dict[str, StoredTensor]:
    """Build the whole model with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        state = build_model(config).state_dict()
    return {name: StoredTensor.of(tensor) for name, tensor in state.items()}
