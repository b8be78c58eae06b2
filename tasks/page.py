"""The page of a launch in Prefect: artifacts, tags, and one line about a failure."""

from __future__ import annotations

import contextlib
import contextvars
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from prefect.context import FlowRunContext
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run, task_run
from prefect.settings import get_current_settings

from slurm_ray_flow.blocks.artifacts import Artifact, Artifacts
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.server.client import api_in_use, ui_url_of
from slurm_ray_flow.core.artifacts import ArtifactContent, LaunchProgress, WaitHistory, about_run, short_name, tags_of
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.progress import Reporter, reporter, stop_reporter, use_reporter
from slurm_ray_flow.core.run import Event, Outcome, find_event
from slurm_ray_flow.tasks.end_report import tell_by_itself, tell_failure, tell_outcome
from slurm_ray_flow.tasks.run import Call, Run


def run_page(flow_run_id: str) -> str:
    """The page of a flow run; "" where Prefect has no server that others can reach."""
    settings = get_current_settings()
    url = settings.ui_url or (ui_url_of(settings.api.url) if settings.api.url else "")
    return f"{url}/runs/flow-run/{flow_run_id}" if url else ""


PROGRESS_SECONDS = 3.0
"""Seconds after which a launch gets a progress bar."""


class Page:
    """The page of one launch; empty outside of a flow run."""

    def __init__(self, run: Run, call: Call, cluster: Cluster, options: Options) -> None:
        self._run, self._function, self._options = run, call.label, options
        self._cluster = short_name(cluster.label)
        self._artifacts = Artifacts(api_in_use() if FlowRunContext.get() else None, str(flow_run.get_id() or ""))
        self._waits, self._is_started = WaitHistory(), False
        _kinds[self._cluster] = cluster.kind
        self._tag(tags_of(call.label, cluster.label, cluster.kind))

    def show(self, shown: ArtifactContent) -> None:
        """Show an artifact, or its newer state. The first call of a map shows those that all calls share."""
        key = shown.key(self._function, self._cluster)
        if shown.what in {"files", "dependencies"} and self._map:
            if (self._map, key) in _shown_of_maps:
                return
            _shown_of_maps.add((self._map, key))
        belongs_to = None if shown.type == "progress" else task_run.get_id()
        data = json.dumps(shown.data) if shown.type == "table" else shown.data  # so Prefect's UI wants it
        self._artifacts.show(Artifact(key, shown.type, data, shown.description, belongs_to))

    def waits(self, text: str) -> bool:
        """Show the reason that the run waits, "" for none; gives whether more than its numbers has changed."""
        now = time.time()
        if not text:
            if shown := self._waits.over(now):
                self.show(shown)
            return shown is not None
        news = self._waits.wait(text, now)
        self.show(self._waits.shown(now))
        return news

    def started(self, events: list[Event]) -> None:
        """Show where the run is, once its head lives or its job is in the queue."""
        self._is_started = True
        self.show(about_run(self._run.record, find_event(events, "allocated"), self._options))

    def open(self) -> None:
        """Begin the page; the launch may go on with a try of an earlier process."""
        if not self._is_started:
            self.started([])
        self._artifacts.open()

    def close(self) -> None:
        """End the page."""
        self.waits("")
        self._artifacts.close()

    def _tag(self, tags: set[str]) -> None:
        _, current_run = _context()
        self._map = next((tag for tag in current_run.tags if tag.startswith("map-")), "") if current_run else ""
        if current_run is not None and not tags <= set(current_run.tags):
            current_run.tags = sorted({*current_run.tags, *tags})
            self._artifacts.tag(set(current_run.tags))


def _context() -> tuple[Any, Any]:
    """The present flow and its run; None for each outside of one."""
    context = FlowRunContext.get()
    return (context.flow, context.flow_run) if context else (None, None)


_kinds: dict[str, str] = {"local": "local-machine"}
"""The kinds of clusters that this process has launched on, by their names."""
_shown_of_maps: set[tuple[str, str]] = set()


def kind_of(cluster: Any) -> str:
    """The kind of a cluster that may not be loaded yet; "" where it is not known."""
    if not isinstance(cluster, str):
        return str(getattr(cluster, "kind", ""))
    kind, _, name = cluster.rpartition("/")
    return kind or _kinds.get(name, "")


class _Nothing:
    """The page outside of a launch."""

    def show(self, shown: ArtifactContent) -> None: ...
    def waits(self, text: str) -> bool:
        return bool(text)

    def started(self, events: list[Event]) -> None: ...


class _Watched(Reporter):
    """A reporter that passes progress on, logs the last text of each step in Prefect, and moves the progress bar."""

    def __init__(self, to: Reporter, page: Page) -> None:
        self._to, self._page, self._advance = to, page, LaunchProgress()
        self._began = time.monotonic()
        self._step, self._note = "", ""
        flow, known = _context()
        self._log = flow_run_logger(known, flow) if known else None

    def begin(self, run_id: str, function: str, cluster: str, url: str) -> None:
        self._to.begin(run_id, function, cluster, url)

    def step(self, name: str) -> None:
        self._to.step(name)
        self._write_note()
        self._step, self._note = name, ""
        self._advance.step(name)
        self._show()
        if name == "execute_call":
            self._page.open()

    def fail(self) -> None:
        self._to.fail()

    def say(self, text: str) -> None:
        self._to.say(text)
        self._note = text

    def warn(self, text: str) -> None:
        self._to.warn(text)

    def log(self, data: bytes) -> None:
        self._to.log(data)
        if self._advance.log(data):
            self._show()

    def again(self, error: BaseException, text: str) -> None:
        self._to.again(error, text)

    def end(self, error: BaseException | None) -> None:
        self._to.end(error)

    def over(self, good: bool) -> None:
        """End the progress bar."""
        self._write_note()
        self._advance.end(good)
        self._show()

    def _write_note(self) -> None:
        if self._note and self._step and self._log:
            self._log.info("%s: %s", self._step, self._note)

    def _show(self) -> None:
        if time.monotonic() - self._began > PROGRESS_SECONDS:
            self._page.show(self._advance.shown())


_page: contextvars.ContextVar[Page | None] = contextvars.ContextVar("slurm_ray_flow_page", default=None)


def page() -> Page | _Nothing:
    """The page of the launch that is under way in this context."""
    return _page.get() or _Nothing()


@contextlib.contextmanager
def shown(run: Run, call: Call, cluster: Cluster, options: Options) -> Iterator[Callable[[Outcome], Outcome]]:
    """Give the launch inside the block a page.

    Yields:
        What the launch gives its outcome to, for the page to tell how it ended.
    """
    this = Page(run, call, cluster, options)
    watched = _Watched(reporter(), this)
    token, shown_token = _page.set(this), use_reporter(watched)
    tell_by_itself(run.record.flow_run_id)

    def told(outcome: Outcome) -> Outcome:
        tell_outcome(run, outcome)
        watched.over(outcome.exception is None)
        return outcome

    try:
        yield told
    except BaseException as error:
        watched.over(False)
        tell_failure(run, error)
        raise
    finally:
        this.close()
        stop_reporter(shown_token)
        _page.reset(token)
