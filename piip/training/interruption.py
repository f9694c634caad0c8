"""What ends a run early: signals, and checkpoints that cannot be restored."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from piip.training.progress import note
from piip.training.resuming import Begun


@contextlib.contextmanager
def saved_interrupts(trainer: pl.Trainer) -> Iterator[None]:
    """Treat the first Ctrl-C like SIGTERM, after which a step is finished and saved; the second one stops at once."""
    if threading.current_thread() is not threading.main_thread() or trainer.world_size > 1:
        yield
        return

    def interrupted(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        note("Interrupted: finishing and saving this step. Press Ctrl-C again to stop at once.")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # the caller has no plans of its own for it
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def explained_restore(checkpoint: Path | None, begun: Begun) -> Iterator[None]:
    """Run Lightning; an error while the state of a checkpoint is restored becomes one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # of frozen branches
            yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        if checkpoint is None or begun.reached:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{checkpoint} cannot be resumed: edited, or of another version ({reason}).") from error
