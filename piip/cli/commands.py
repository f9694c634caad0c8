"""The command `piip`: a dict of functions, exposed with their docstrings as help.

Heavy imports are inside the functions, so help is printed immediately.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from piip import __version__
from piip.cli.app import app
from piip.cli.bench import bench
from piip.cli.compare import compare
from piip.cli.convert import convert
from piip.cli.cost import cost
from piip.cli.data import data_check, data_landcover, data_nuclei
from piip.cli.data_convert import data_convert
from piip.cli.demo import demo
from piip.cli.evaluate import evaluate
from piip.cli.explain import explain
from piip.cli.export import export
from piip.cli.help import conversion_examples, recipe_fields
from piip.cli.list import list_models
from piip.cli.parser import Command, CommandGroup, run_command
from piip.cli.plan import plan
from piip.cli.predict import predict
from piip.cli.train import train
from piip.deprecation import deprecated
from piip.tables import Table

TRAIN_EXTRA = ("pytorch_lightning", "torchmetrics", "tensorboard", "pycocotools", "scipy")
KILLED = (
    "A data loading process was killed, probably for want of memory or shared memory: set data.workers (--workers) to "
    "0, or enlarge /dev/shm (docker run --shm-size 8g)."
)
INTERRUPTED = {
    "train": " Resume from the last checkpoint with --resume auto.",
    "compare": " The same command continues.",
}
DESCRIPTION = "Parameter-inverted image pyramids: large networks process small images, small networks large ones."


RENAMED_OPTIONS = {"evaluate": {"--detections": "--max-detections", "--counter": "--backend"}}  # old -> new

# A nested mapping is a group with commands of its own; `register` adds a command (docs/extending.md).
COMMANDS: Table[Command | CommandGroup, None] = Table.of(
    "command",
    {
        "list": list_models,
        "cost": cost,
        "plan": plan,
        "bench": bench,
        "compare": compare,
        "data": {
            "check": data_check,
            "convert": data_convert,
            "landcover": data_landcover,
            "nuclei": data_nuclei,
        },
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "explain": explain,
        "convert": convert,
        "export": export,
        "demo": demo,
        "app": app,
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; user errors print one line to stderr.

    Exit codes: 2 for wrong arguments, data or files; 1 if training diverged; 130 after an interrupt.

    Args:
        argv: Arguments without the program's name; None uses those of the process.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words == ["--version"]:
        print(f"piip {__version__}")
        return
    try:
        run_command(
            COMMANDS,
            _with_current_options(words),
            program="piip",
            description=DESCRIPTION,
            epilogs={"train": recipe_fields, "convert": conversion_examples},
        )
    except ValueError as error:
        _fail(error, 2)
    except FloatingPointError as error:
        _fail(error, 1)
    except BrokenPipeError:  # e.g. `piip list | head`
        sys.stderr.close()
    except OSError as error:
        _fail(error, 2)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # the kernel kills it without a word, mostly with a bus error for want of shared memory
        _fail(f"{str(error).splitlines()[0].rstrip('.')}. {KILLED}", 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in TRAIN_EXTRA:
            raise
        _fail(f'This needs {package}: pip install "piip[train]".', 2)
    except KeyboardInterrupt:
        _fail(f"Interrupted.{INTERRUPTED.get(words[0], '')}", 130)


def _with_current_options(words: Sequence[str]) -> list[str]:
    """Return the arguments with options of version 0.1 under their new names."""
    renamed = RENAMED_OPTIONS.get(words[0], {})
    current = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in renamed:
            deprecated(name, renamed[name])
        current.append(renamed.get(name, name) + equals + value)
    return current


def _fail(error: Exception | str, code: int) -> None:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # an error from a worker process contains that process's traceback; its last line is the message
    if any(line.startswith("Traceback") for line in lines):
        lines = [lines[-1].removeprefix("ValueError: ")]
    print(f"piip: error: {' '.join(lines) or 'unknown'}", file=sys.stderr)
    sys.exit(code)
