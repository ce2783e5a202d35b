"""The run of one stage: what is recorded, and what happens where the tracker is away.

A tracker that is away never stops a computation: what it should have received is kept in memory and sent later.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunInfo, RunTag

from diffats.errors import StoreNotFoundError, redact
from diffats.registry.connection import AWAY
from diffats.registry.datasets import StoreDataset, StoreSource
from diffats.registry.notes import NOTE_TAG, owned, signed
from diffats.registry.places import run_path

logger = logging.getLogger("diffats.registry")

ERROR_TAG = "diffats.error"
CONTEXT_TAG = "mlflow.data.context"
FLUSH_SECONDS = 2.0
FLUSH_METRICS = 100
CLOSE_SECONDS = 60.0  # how long the end of a stage waits for a tracker that is away
KILL_SECONDS = 3.0  # and after Ctrl-C or SIGTERM, for the stage's run and for its parent
MAX_METRICS = 1000  # MLflow's limits of one request
MAX_PARAMS = 100
MAX_VALUE = 6000
MAX_TAG = 5000


class StageRun:
    """The run of one stage. Made by :meth:`Tracker.stage`, used in a ``with`` block.

    Leaving the block sends what waits and closes the run: finished, failed after an exception, killed after Ctrl-C.
    Nothing here raises where the tracker is away; what could not be sent is kept, tried again at the end, and counted
    in the log.
    """

    def __init__(self, client: MlflowClient, uri: str, run: RunInfo, stage: str, parent_id: str) -> None:
        self.run_id = str(run.run_id)
        self.parent_id = parent_id
        self.address = run_path(run.experiment_id, parent_id)  # of the parent, in the tracker's pages
        self._client = client
        self._uri = uri
        self._stage = stage
        self._outbox = Outbox(self._deliver, redact(uri))
        self._unsent: list[tuple[str, Callable[[], object]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return self.close("FINISHED")
        text = redact(f"{kind.__name__}: {error}")[:MAX_TAG]
        status = "FAILED" if issubclass(kind, Exception) else "KILLED"

        def end() -> None:
            self._send("error", lambda: self._client.set_tag(self.run_id, ERROR_TAG, text))
            self.close(status)

        if status == "FAILED":
            end()
        else:
            soon(end, f'the end of stage "{self._stage}"')

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers; a thread sends them every two seconds or hundred numbers."""
        self._outbox.put([(self.run_id, metric) for metric in measured(metrics, step)])

    def curves(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers on the parent run, where a person looks first; they are sent as those of :meth:`log`."""
        self._outbox.put([(self.parent_id, metric) for metric in measured(metrics, step)])

    def headline(self, metrics: Mapping[str, float]) -> None:
        """Record numbers on the parent run, where runs are compared."""
        batch = measured(metrics)
        self._send("headline metrics", lambda: self._client.log_batch(self.parent_id, metrics=batch))

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested ones get dotted names, ones that are there stay."""
        given = flat(params)
        self._send("params", lambda: log_params(self._client, self.run_id, given))

    def tags(self, tags: Mapping[str, Any], *, parent: bool = False) -> None:
        """Set tags."""
        batch = [RunTag(key, value) for key, value in texts(tags).items()]
        self._send("tags", lambda: self._client.log_batch(self._chosen(parent), tags=batch))

    def note(self, markdown: str) -> None:
        """Set the text on the run's page."""
        self.tags({NOTE_TAG: markdown})

    def describe(self, markdown: str) -> None:
        """Set the text on the parent run's page; one that a person has written stays."""

        def send() -> None:
            if owned(self._client.get_run(self.parent_id).data.tags.get(NOTE_TAG)):
                self._client.set_tag(self.parent_id, NOTE_TAG, signed(markdown))

        self._send("description", send)

    def dataset(
        self,
        name: str,
        location: str,
        group: str | None,
        snapshot: str | None,
        digest: str,
        context: str,
        *,
        schema: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a version of a store as input of this run and of its parent.

        Parameters
        ----------
        location, group, snapshot, digest
            As in :class:`StoreSource`.
        context
            What it is to the run: "raw", "primitives", "samples".
        schema, facts
            As in :class:`StoreDataset`.
        """
        source = StoreSource(location, group, snapshot, digest)
        given = [dataset_input(source, name, context, schema=schema, facts=facts)]

        def send() -> None:
            for run_id in (self.run_id, self.parent_id):
                self._client.log_inputs(run_id, datasets=given)

        self._send(f"dataset {name}", send)

    def artifact(self, path: str | Path, folder: str | None = None, *, parent: bool = False) -> None:
        """Keep a file or directory with the run.

        Raises
        ------
        StoreNotFoundError
            Where there is no such file.
        """
        if not Path(path).exists():
            raise StoreNotFoundError(f'stage "{self._stage}": no file {path} to keep with the run. Write it first.')
        self._send(f"artifact {path}", lambda: self._client.log_artifact(self._chosen(parent), str(path), folder))

    def keeps(self, name: str) -> bool:
        """Whether the parent run has a file; no where the tracker is away."""
        try:
            return any(file.path == name for file in self._client.list_artifacts(self.parent_id))
        except AWAY:
            return False

    def text(self, name: str, text: str, *, parent: bool = False) -> None:
        """Keep a text as file ``name``."""
        self._send(f"artifact {name}", lambda: self._client.log_text(self._chosen(parent), text, name))

    def dict(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep plain data as file ``name``, ending in ``.json`` or ``.yaml``."""
        self._send(f"artifact {name}", lambda: self._client.log_dict(self.run_id, {**content}, name))

    def _deliver(self, batch: Sequence[tuple[str, Metric]]) -> None:
        for run_id in dict.fromkeys(run_id for run_id, _ in batch):
            self._client.log_batch(run_id, metrics=[metric for run, metric in batch if run == run_id])

    def _chosen(self, parent: bool) -> str:
        return self.parent_id if parent else self.run_id

    def close(self, status: str = "FINISHED") -> None:
        """Send what waits and end the run with a status of MLflow."""
        undelivered = self._outbox.close(KILL_SECONDS if status == "KILLED" else CLOSE_SECONDS)
        unsent, self._unsent = self._unsent, []
        for what, send in unsent:
            self._send(what, send)
        if undelivered or self._unsent:
            logger.error(
                'stage "%s": %d metrics and %d other records (%s) could not be delivered to MLflow at %s and are lost. '
                "Results on disk are complete; check that the tracker is up.",
                self._stage,
                undelivered,
                len(self._unsent),
                ", ".join(what for what, _ in self._unsent) or "none",
                redact(self._uri),
            )
        finish_run(self._client, self._uri, self.run_id, status)

    def _send(self, what: str, send: Callable[[], object]) -> None:
        try:
            send()
        except AWAY as error:
            logger.warning(
                'stage "%s": %s not recorded, tried again at the end: %s', self._stage, what, redact(str(error))
            )
            self._unsent.append((what, send))


def soon(action: Callable[[], object], what: str) -> None:
    """Do something that is to be recorded before the process ends, but do not wait long for a tracker that is away."""
    thread = threading.Thread(target=action, name="mlflow-end", daemon=True)
    thread.start()
    thread.join(KILL_SECONDS)
    if thread.is_alive():
        logger.warning("MLflow does not answer: %s is not recorded", what)


class Outbox:
    """Metrics on their way to the tracker, in order: sent by a thread, kept while sending fails.

    Parameters
    ----------
    send
        Called with at most 1000 metrics, each beside its run's id; raises where the tracker is away.
    where
        The tracker, for messages.

    Examples
    --------
    >>> outbox = Outbox(lambda batch: print(len(batch)), "nowhere")
    >>> outbox.put([("run", Metric("loss", 0.5, 0, 1))])
    >>> outbox.close(timeout=10)
    1
    0
    """

    def __init__(self, send: Callable[[Sequence[tuple[str, Metric]]], object], where: str) -> None:
        self._deliver = send
        self._where = where
        self._waiting: list[tuple[str, Metric]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._away = False
        self._thread: threading.Thread | None = None

    def put(self, metrics: Sequence[tuple[str, Metric]]) -> None:
        """Add metrics; returns at once."""
        with self._lock:
            self._waiting.extend(metrics)
            if self._thread is None:
                # A daemon: a tracker that hangs must not keep the process alive.
                self._thread = threading.Thread(target=self._work, name="mlflow-metrics", daemon=True)
                self._thread.start()
        if len(self._waiting) >= FLUSH_METRICS:
            self._wake.set()

    def close(self, timeout: float) -> int:
        """Send the rest, waiting at most ``timeout`` seconds; how many metrics were not delivered."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        return len(self._waiting)

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while batch := self._waiting[:MAX_METRICS]:
            try:
                self._deliver(batch)
            except AWAY as error:
                if not self._away:
                    logger.warning(
                        "MLflow at %s is away, metrics are kept and sent later: %s", self._where, redact(str(error))
                    )
                self._away = True
                return
            with self._lock:
                del self._waiting[: len(batch)]
            if self._away:
                logger.info("MLflow at %s is back.", self._where)
            self._away = False


def measured(metrics: Mapping[str, float], step: int = 0) -> list[Metric]:
    """Numbers as MLflow records them, of now."""
    now = time.time_ns() // 1_000_000
    return [Metric(_plain_name(name), float(value), now, step) for name, value in metrics.items()]


def finish_run(client: MlflowClient, uri: str, run_id: str, status: str) -> None:
    """Close a run. A tracker that is away is logged, not raised: the work is done."""
    try:
        client.set_terminated(run_id, status)
    except AWAY as error:
        logger.error(
            "MLflow at %s is away; run %s could not be marked %s: %s", redact(uri), run_id, status, redact(str(error))
        )


def dataset_input(
    source: StoreSource,
    name: str,
    context: str,
    *,
    schema: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> DatasetInput:
    """A version of a store as MLflow records inputs."""
    entity = StoreDataset(source, name, schema=schema, facts=facts)._to_mlflow_entity()
    return DatasetInput(entity, [InputTag(CONTEXT_TAG, context)])


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Record parameters that the run does not have yet."""
    if not params:
        return
    known = client.get_run(run_id).data.params  # a parameter cannot be written twice
    new = [Param(key, value) for key, value in flat(params).items() if key not in known]
    for start in range(0, len(new), MAX_PARAMS):
        client.log_batch(run_id, params=new[start : start + MAX_PARAMS])


def _plain_name(name: str) -> str:
    """A name that MLflow takes for a metric or a parameter.

    >>> _plain_name("overlap[y]")
    'overlap_y_'
    """
    return re.sub(r"[^\w\-./ ]", "_", name)


def texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow keeps them."""
    return {key: str(value)[:MAX_TAG] for key, value in tags.items()}


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters by dotted name.

    >>> flat({"decompose": {"ranks": {"y": 6}, "tolerance": None}, "modes": ["y", "x"]})
    {'decompose.ranks.y': '6', 'decompose.tolerance': 'null', 'modes': '["y", "x"]'}
    """
    out: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            out[_plain_name(prefix + key)] = text[:MAX_VALUE]
    return out
