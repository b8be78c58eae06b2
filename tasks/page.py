"""What Prefect shows of a launch: artifacts, tags, log lines, each failure once, and its event for automations."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run, task_run
from prefect.settings import get_current_settings

from slurm_ray_flow.blocks.artifacts import Artifact, Artifacts
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.server.client import api_in_use, ui_url_of
from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.artifacts import ArtifactContent, LaunchProgress, WaitHistory, about_run, short_name, tags_of
from slurm_ray_flow.core.errors import Cancelled, SlurmRayFlowError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.prefect_events import PrefectEvent, run_failed
from slurm_ray_flow.core.run import Event, Outcome
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.core.trace import tracing
from slurm_ray_flow.tasks.run import Run


def run_page(flow_run_id: str) -> str:
    """The address of a flow run's page; "" without a Prefect server."""
    settings = get_current_settings()
    url = settings.ui_url or (ui_url_of(settings.api.url) if settings.api.url else "")
    return f"{url}/runs/flow-run/{flow_run_id}" if url else ""


PROGRESS_SECONDS = 3.0
"""Seconds after which a launch gets a progress bar."""
_kinds: dict[str, str] = {"local": "local-machine"}
"""The kinds of clusters that this process has launched on, by their names."""
_artifacts_of_maps: set[tuple[str, str]] = set()
"""The artifacts that the first call of a map has shown for all calls, by the map's tag and their key."""


def kind_of(cluster: Any) -> str:
    """The kind of a cluster that is given by its name or as a block; "" where the kind is not known."""
    if not isinstance(cluster, str):
        return str(getattr(cluster, "kind", ""))
    kind, _, name = cluster.rpartition("/")
    return kind or _kinds.get(name, "")


RECORD_BYTES, RECORD_SECONDS = 64 * 1024, 1.0
"""The size and age of a log record for Prefect: 100,000 lines take 58 s as a record each, 2 s as 100 records."""
PREFECT_BYTES = 16 * 1024 * 1024
"""The most bytes of a try's output that go to Prefect."""

Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


class _OutputLog:
    """The output of one try in Prefect's log, in large pieces; `path` is the file on the cluster that has all of it."""

    def __init__(self, path: PurePosixPath, logger: Logger) -> None:
        self._path, self._logger = path, logger
        self._bytes_sent, self._pending = 0, bytearray()
        self._since = time.monotonic()

    def add(self, data: bytes, last: bool) -> None:
        """Add output of the function; send whole lines when they are many, or when the last record is old."""
        self._pending += data
        now = time.monotonic()
        if not last and len(self._pending) < RECORD_BYTES and now - self._since < RECORD_SECONDS:
            return
        self._since = now
        end = len(self._pending) if last else self._pending.rfind(b"\n") + 1
        whole, self._pending = self._pending[:end], self._pending[end:]
        while whole:
            cut = len(whole) if len(whole) <= RECORD_BYTES else whole.rfind(b"\n", 0, RECORD_BYTES) + 1 or RECORD_BYTES
            self._record(bytes(whole[:cut]))
            del whole[:cut]

    def _record(self, piece: bytes) -> None:
        sent_before = self._bytes_sent
        self._bytes_sent += len(piece)
        if self._bytes_sent <= PREFECT_BYTES:
            self._logger.info("%s", piece.decode(errors="replace").rstrip("\n"))
        elif sent_before <= PREFECT_BYTES:
            self._logger.warning("The rest of this log is in %s: more than 16 MiB are not shown here.", self._path)


class Page:
    """The page of one launch, a subscriber of its events; outside of a flow run it shows nothing."""

    def __init__(self, run: Run, cluster: Cluster, options: Options) -> None:
        self._run, self._function, self._options = run, run.record.function, options
        self._cluster = short_name(cluster.label)
        context = FlowRunContext.get()
        self._flow_run = context.flow_run if context else None
        self._flow_log = flow_run_logger(self._flow_run, context.flow) if context and self._flow_run else None
        self._artifacts = Artifacts(api_in_use() if context else None, str(flow_run.get_id() or ""))
        self._waits, self._run_is_shown = WaitHistory(), False
        self._progress, self._began = LaunchProgress(), time.monotonic()
        self._step, self._note = "", ""
        self._output: _OutputLog | None = None
        _kinds[self._cluster] = cluster.kind
        self._tag(tags_of(self._function, cluster.label, cluster.kind))

    def receive(self, event: events.LaunchEvent) -> None:
        """Show an event."""
        match event:
            case events.StepStarted():
                self._start_step(event.name)
            case events.Note():
                self._store_note(event.text)
            case events.Warned() | events.TryFailed():
                self._log(logging.WARNING, event.text)
            case events.Waiting():
                self._wait(event)
            case events.Placed():
                self._show_run(event.allocated)
            case events.Output():
                self._add_output(event)
            case events.ArtifactMade():
                self._show(event.content)
            case events.ResourcesUsed(text, table):
                self._log(logging.INFO, text)
                self._show(ArtifactContent("use", "markdown", table, text))
            case events.CallEnded():
                self._end_call(event.outcome)

    def fail(self, error: BaseException) -> None:
        """Show that the launch has failed. Prefect itself reports interruptions."""
        self._end_progress(good=False)
        if isinstance(error, Cancelled):
            self._log(logging.WARNING, str(error))
        elif isinstance(error, Exception):
            is_ours = isinstance(error, SlurmRayFlowError)
            self._log(logging.ERROR, f"{type(error).__name__}: {error}", exc_info=None if is_ours else error)
            cause = getattr(error, "cause", "") or "launch"  # at home, before the cluster was involved
            emit(run_failed(self._run.record, cause, encodable(getattr(error, "what", str(error)))))

    def close(self) -> None:
        """End the page."""
        if content := self._waits.over(time.time()):
            self._show(content)
        self._artifacts.close()

    def _start_step(self, name: str) -> None:
        self._log_note()
        self._step = name
        self._progress.step(name)
        self._show_progress()
        if name == "execute_call":
            if logger := self._logger():
                self._output = _OutputLog(self._run.paths.log, logger)
            if not self._run_is_shown:  # the try is an earlier process's, or on a warm cluster
                self._show_run(None)
            self._artifacts.open()

    def _store_note(self, text: str) -> None:
        """Keep a step's note until the step ends; log a note before the first step at once."""
        if self._step:
            self._note = text
        else:
            self._log(logging.INFO, text)

    def _wait(self, event: events.Waiting) -> None:
        """Show a wait; log it when more than numbers has changed in its text."""
        now = time.time()
        if event.over:
            content = self._waits.over(now)
            is_news = content is not None
        else:
            is_news = self._waits.wait(event.text, now)
            content = self._waits.content(now)
        if content:
            self._show(content)
        if is_news:
            self._log(logging.INFO, event.text)

    def _show_run(self, allocated: Event | None) -> None:
        self._run_is_shown = True
        self._show(about_run(self._run.record, allocated, self._options))

    def _add_output(self, event: events.Output) -> None:
        if self._output:
            self._output.add(event.data, event.last)
        if self._progress.log(event.data):
            self._show_progress()

    def _end_call(self, outcome: Outcome) -> None:
        error = outcome.exception
        if error is not None:
            text = encodable(f"{type(error).__name__}: {error}")
            self._log(logging.ERROR, f"The function raised {text}\n{outcome.traceback.rstrip()}".rstrip())
            emit(run_failed(self._run.record, "user_code", text))
        self._end_progress(good=error is None)

    def _end_progress(self, good: bool) -> None:
        self._log_note()
        self._progress.end(good)
        self._show_progress()

    def _show(self, content: ArtifactContent) -> None:
        """Show an artifact, or its newer state. The first call of a map shows those that all calls share."""
        key = content.key(self._function, self._cluster)
        if content.what in {"files", "dependencies"} and self._map:
            if (self._map, key) in _artifacts_of_maps:
                return
            _artifacts_of_maps.add((self._map, key))
        belongs_to = None if content.type == "progress" else task_run.get_id()
        data = json.dumps(content.data) if content.type == "table" else content.data  # the form that Prefect's UI takes
        self._artifacts.show(Artifact(key, content.type, data, content.description, belongs_to))

    def _show_progress(self) -> None:
        if time.monotonic() - self._began > PROGRESS_SECONDS:
            self._show(self._progress.content())

    def _log_note(self) -> None:
        """Write the last note of the step into the flow's log."""
        if self._note and self._flow_log:
            self._flow_log.info("%s: %s", self._step, self._note)
        self._note = ""

    def _log(self, level: int, text: str, exc_info: BaseException | None = None) -> None:
        if logger := self._logger():
            logger.log(level, encodable(text), exc_info=exc_info)

    def _logger(self) -> Logger | None:
        """The logger of the present task, else that of the flow run."""
        return get_run_logger() if TaskRunContext.get() else self._flow_log

    def _tag(self, tags: set[str]) -> None:
        current = self._flow_run
        self._map = next((tag for tag in current.tags if tag.startswith("map-")), "") if current else ""
        if current is not None and not tags <= set(current.tags):
            current.tags = sorted({*current.tags, *tags})
            self._artifacts.tag(set(current.tags))


@contextlib.contextmanager
def shown_in_prefect(run: Run, cluster: Cluster, options: Options) -> Iterator[None]:
    """Give the launch inside the block a page."""
    page = Page(run, cluster, options)
    silence_engine(run.record.flow_run_id)
    try:
        with events.streamed_to(events.publisher(), page.receive):
            yield
    except BaseException as error:
        page.fail(error)
        raise
    finally:
        page.close()


_silenced: set[str] = set()
"""The flow runs whose launch reports its failure itself."""


def silence_engine(flow_run_id: str) -> None:
    """Keep Prefect's engine from reporting failures of this flow run and its tasks with its own frames."""
    if not tracing():
        _silenced.add(flow_run_id)


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Raise an error of this package without the frames that Prefect's engine would add."""
    try:
        yield
    except SlurmRayFlowError as error:
        if identity := flow_run.get_id():
            silence_engine(identity)
            get_run_logger().error(encodable(f"{type(error).__name__}: {error}"))
        raise


def emit(event: PrefectEvent) -> None:
    """Send an event in the background; a failure to send is no error."""
    try:
        emit_event(event.event, resource=event.resource, related=list(event.related), payload=event.payload)
    except Exception as error:
        logging.getLogger("prefect.slurm_ray_flow").debug("no event %s: %s", event.event, error)


class _ReportedFailures(logging.Filter):
    """A log filter against messages of Prefect's engine about reported failures, and about successful tasks."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "flow_run_id", "") not in _silenced or record.module not in {"flow_engine", "task_engine"}:
            return True
        message = str(record.msg)
        if record.module == "task_engine" and message.startswith("Finished in state"):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            return "Completed" not in message
        return not (
            record.levelno >= logging.ERROR
            and message.startswith(("Encountered exception during", "Engine execution exited", "Task run failed with"))
        )


_reported_failures = _ReportedFailures()
for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_reported_failures)
