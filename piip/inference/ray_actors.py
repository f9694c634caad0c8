"""Prediction by a pool of Ray actors, with the results of one process in the order of the files.

Ray Data hands batches of file names to the actors, each of which holds the model. If an actor dies, Ray starts another
one and repeats its batches; a batch's predictions come back together, so that none is lost or doubled.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.fields import at_least
from piip.inference.predictions import Prediction

if TYPE_CHECKING:
    import ray.data

    from piip.inference.predictor import Predictor

LOCAL = "local"
RETRIES = 3  # times that a batch is tried again on another actor, in case one of its images kills actors
SECONDS_TO_ANSWER = 10
MAX_BLOCKS = 10_000  # of Ray Data; each has one batch of files or several

MakePredictor = Callable[[], "Predictor"]
PredictPaths = Callable[["Predictor", Sequence[str]], Iterator[Prediction]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayPool:
    """Where and how many actors run.

    Args:
        address: Address of a Ray cluster such as "10.0.0.1:6379" or "auto", or "local" for a cluster on this machine
            that ends with the prediction.
        actors: Number of actors; None is one for each GPU of the cluster, or for each processor core if it has no GPU.
        use_gpus: Give each actor a GPU, or its part of one, if the cluster has any.

    Raises:
        ValueError: `actors` is below 1.
    """

    address: str
    actors: int | None = None
    use_gpus: bool = True

    def __post_init__(self) -> None:
        if self.actors is not None:
            at_least("ray-actors", self.actors, 1)


class Actor:
    """One actor: a model that predicts batches of files.

    Args:
        make_predictor: Returns the predictor.
        predict: `Predictor.predict_paths` with its options.
        folder: The caller's working directory, which the names of files may be relative to.
    """

    def __init__(self, make_predictor: MakePredictor, predict: PredictPaths, folder: str) -> None:
        self.predict = predict
        self.problem = ""  # an error here would reach the caller as Ray's, after some tries
        try:
            os.chdir(folder)
            self.predictor = make_predictor()
        except (OSError, ValueError) as error:
            self.problem = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """Return the predictions of the files in a row, the warnings, and the error that ended the work, if one did."""
        from ray import cloudpickle

        predictions: list[Prediction] = []
        problem = self.problem
        with _warnings() as messages:
            try:
                predictions.extend([] if problem else self.predict(self.predictor, row["paths"]))
            except ValueError as error:
                problem = str(error)
        return {"results": cloudpickle.dumps((predictions, messages, problem))}


def predict_on_ray(
    files: Sequence[Path], make_predictor: MakePredictor, predict: PredictPaths, pool: RayPool, *, batch_size: int
) -> Iterator[Prediction]:
    """Yield the predictions for files, in order.

    Args:
        files: Image files that every machine of the cluster can read under these names.
        make_predictor: Returns the predictor; called once in each actor.
        predict: `Predictor.predict_paths` with its options.
        pool: The actors.
        batch_size: Successive files that an actor predicts at a time; see `Predictor.files_at_once`.

    Ray prints to the standard output when an actor dies; the messages that the actors log are logged here.

    Raises:
        ValueError: Ray is not installed, the cluster does not answer, or `predict` raises it.
    """
    with _cluster(pool.address) as resources:
        from ray import cloudpickle, exceptions

        rows = _dataset(files, (make_predictor, predict, os.getcwd()), batch_size, pool, resources).iter_rows()
        try:
            for row in rows:
                predictions, messages, problem = cloudpickle.loads(row["results"])
                for message in messages:
                    logger.warning("%s", message)
                yield from predictions
                if problem:
                    raise ValueError(problem)
        except (exceptions.ActorDiedError, exceptions.ActorUnavailableError) as error:
            raise ValueError(
                f"{RETRIES + 1} actors died at the same images, perhaps for want of memory: use fewer actors or "
                f"--tile. Ray says: {' '.join(str(error).split())}"
            ) from error


def _dataset(
    files: Sequence[Path], made_of: tuple[Any, ...], batch_size: int, pool: RayPool, resources: Mapping[str, float]
) -> ray.data.Dataset:
    """Return the data set of results: a row per batch of files, in order."""
    import ray.data

    gpus = int(resources.get("GPU", 0)) if pool.use_gpus else 0
    count = pool.actors or gpus or int(resources.get("CPU", 1))
    starts = range(0, len(files), batch_size)
    batches = [{"paths": [str(path) for path in files[start : start + batch_size]]} for start in starts]
    dataset = ray.data.from_items(batches, override_num_blocks=min(len(batches), MAX_BLOCKS))
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    with warnings.catch_warnings():
        # Ray 2.60 will take the limit of retries away in 2.64, and names nothing in its place.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map(
            Actor,
            fn_constructor_args=made_of,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(batches))),
            num_gpus=1 / math.ceil(count / gpus) if gpus else None,  # a GPU has whole actors
            max_restarts=-1,
            max_task_retries=RETRIES,
        )


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[dict[str, float]]:
    """Connect to a cluster, or start one on this machine and end it; yield its resources."""
    try:
        import ray
    except ImportError as error:
        raise ValueError('--ray needs Ray: pip install "piip[ray]".') from error
    if ray.is_initialized():  # a program that uses Ray calls this
        yield ray.cluster_resources()
        return
    _check_reachable(address)
    with _quiet_logs():
        try:
            dashboard = False if address == LOCAL else None
            ray.init(address=address, include_dashboard=dashboard, logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"--ray {address}: no Ray cluster answers there ({' '.join(str(error).split())}). If the cluster has "
                "tokens (`ray start` says so), set RAY_AUTH_MODE=token."
            ) from error
        try:
            yield ray.cluster_resources()
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ValueError if nothing answers at HOST:PORT, for which Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")  # of IPv6
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray {address}: nothing answers at this address ({error}).") from error


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Show warnings and errors of Ray Data only, and not that its progress bars are off."""
    import ray.data  # noqa: F401 - sets the levels of its logs

    levels = {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the package logs as warnings, to be logged by the process that called."""
    collector = _Collector()
    log = logging.getLogger("piip")
    log.addHandler(collector)
    try:
        yield collector.messages
    finally:
        log.removeHandler(collector)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
