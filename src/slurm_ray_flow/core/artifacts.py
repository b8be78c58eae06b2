"""How far a launch is, in percent: by its steps, and then by what the function itself says. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.core.lock import clock
from slurm_ray_flow.core.outputs import counted, printable_name
from slurm_ray_flow.core.quantities import format_duration, format_memory
from slurm_ray_flow.core.sweep import TAG
from slurm_ray_flow.core.text import plain, printable

if TYPE_CHECKING:
    from slurm_ray_flow.core.options import Options
    from slurm_ray_flow.core.run import Event, RunRecord
    from slurm_ray_flow.core.snapshot.entries import Entry, LeftOut


def short_name(cluster: str) -> str:
    """A cluster's name without its kind: the same thing is shown under the same name, whoever asks for it and how."""
    return cluster.rpartition("/")[2]


def artifact_key(verb: str, cluster: str) -> str:
    """The key under which Prefect keeps the history of one verb on one cluster: lower-case letters, digits, dashes."""
    return f"{verb}-{re.sub(r'[^a-z0-9]+', '-', cluster.lower()).strip('-') or 'cluster'}"


MOST_FILES = 200
"""So many files of a snapshot are listed."""
MOST_REASONS = 20
"""So many things that a run has waited for are listed."""


@dataclass(frozen=True)
class ArtifactContent:
    """One artifact.

    Attributes:
        what: begins its key; with function and cluster it names the history of the same thing.
        type: "markdown", "table" or "progress".
        data: as Prefect wants it for that type.
        description: a line about it.
    """

    what: str
    type: str
    data: Any
    description: str

    def key(self, function: str, cluster: str) -> str:
        """The key under which Prefect keeps it."""
        whole_cluster = self.what == "use"
        return artifact_key(self.what, short_name(cluster) if whole_cluster else f"{function}-on-{short_name(cluster)}")


def flow_run_name(function: str, cluster: str, nodes: int) -> str:
    """What a flow run is called: "train on curnagl, 2 nodes"."""
    return f"{function} on {short_name(cluster)}" + (f", {nodes} nodes" if nodes > 1 else "")


def tags_of(function: str, cluster: str, kind: str = "") -> set[str]:
    """What flow runs can be looked for by: ours at all, the function, the cluster and its kind."""
    return {TAG, function, short_name(cluster)} | ({kind} if kind else set())


def about_run(record: RunRecord, allocated: Event | None, options: Options) -> ArtifactContent:
    """Where a run is, and what to type to see more of it."""
    short, job = record.run_id[:8], allocated or {}
    rows = [
        ("function", f"`{record.function}`"),
        ("cluster", f"{record.cluster} ({record.kind})"),
        ("asked for", asked(options)),
        ("job", f"`{job['job']}`" if job.get("job") else ""),
        ("nodes", f"`{plain(str(job['nodelist']))}`" if job.get("nodelist") else ""),
        ("folder there", f"`{record.paths.folder}`"),
        ("log there", f"`{record.paths.log}`"),
    ]
    commands = [
        (f"srf logs {short} --follow", "what it prints"),
        (f"srf attach {short}", "follow it, and get its value"),
        (f"srf cancel {short}", "end it"),
    ]
    head = [f"| run | `{record.run_id}` |", "|---|---|"]
    table = "\n".join([*head, *(f"| {name} | {value} |" for name, value in rows if value)])
    typed = "\n".join(["| in a terminal | |", "|---|---|", *(f"| `{text}` | {what} |" for text, what in commands)])
    number = f", job {job['job']}" if job.get("job") else ""
    return ArtifactContent("run", "markdown", f"{table}\n\n{typed}\n", f"Run {short} on {record.cluster}{number}")


def asked(options: Options) -> str:
    """The sizes that a run asks for, in words."""
    amounts = [
        _counted(options.nodes if options.nodes > 1 else 0, "node"),
        _counted(options.cpus_per_node or 0, "CPU"),
        _counted(options.gpus_per_node, "GPU"),
        format_memory(options.memory) if options.memory else "",
        format_duration(options.time_limit) if options.time_limit else "",
    ]
    return ", ".join(filter(None, amounts))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}" if number else ""


def about_files(
    entries: Sequence[Entry], sent: Collection[str], bytes_sent: int, bytes_total: int, left_out: Sequence[LeftOut] = ()
) -> ArtifactContent:
    """What the snapshot holds, what of it had to travel, and what of packages stays at home, which comes first.

    Args:
        entries: all its files.
        sent: the places of those that travelled.
        bytes_sent, bytes_total: the sizes of those, and of all.
        left_out: what stays at home.
    """

    def row(file: str, size: int, how: str) -> dict[str, Any]:
        return {"file": plain(printable(file)), "bytes": size, "how": how}

    rows = [
        row(file.file, file.size, f"left at home: {plain(printable(file.why))}; include=[...] sends it")
        for file in sorted(left_out, key=lambda file: (-file.size, file.file))[:MOST_FILES]
    ]
    order = sorted(entries, key=lambda entry: (entry.place not in sent, -entry.size, entry.place))
    for entry in order[:MOST_FILES]:
        how = "sent" if entry.place in sent else "link" if entry.link is not None else "was there"
        rows.append(row(entry.place.partition("/")[2], entry.size, how))
    if rest := order[MOST_FILES:]:
        rows.append(row(f"and {len(rest)} more", sum(entry.size for entry in rest), ""))
    size = format_memory(sum(file.size for file in left_out))
    stays = f"; {len(left_out)} of packages left at home, {size}" if left_out else ""
    count, total = "1 file" if len(entries) == 1 else f"{len(entries)} files", format_memory(bytes_total)
    text = f"{len(sent)} of {count} sent, {format_memory(bytes_sent)}; {total} in all"
    return ArtifactContent("files", "table", rows, (text if sent else f"{count}, {total}: nothing to send") + stays)


def about_outputs(written: Any, record: RunRecord) -> ArtifactContent:
    """What the function has written, as the event of the call's end tells it, and how it comes home."""
    rows: list[dict[str, Any]] = [{"file": printable_name(name), "bytes": size} for name, size in written["largest"]]
    if more := int(written["count"]) - len(rows):
        rows.append({"file": f"and {more} more", "bytes": int(written["bytes"]) - sum(row["bytes"] for row in rows)})
    there = counted(written["count"], written["bytes"])
    said = f"{there} in the run's working directory; `srf fetch {record.run_id[:8]} PATTERN` brings them"
    return ArtifactContent("outputs", "table", rows, said)


def about_packages(rows: Sequence[tuple[str, str, str, str]]) -> ArtifactContent:
    """The packages of a run, against those that are there."""
    table = [dict(zip(("package", "there", "wanted", "what"), row, strict=True)) for row in rows]
    new = sum(row[3] != "already there" for row in rows)
    number = _counted(len(rows), "package")
    text = f"{number}, {new} to install" if new else f"{number}, all there"
    return ArtifactContent("dependencies", "table", table, text)


class WaitHistory:
    """What a run has waited for, the newest first; it becomes one artifact that changes in place.

    Attributes:
        waiting: it waits now.
    """

    def __init__(self) -> None:
        self.waiting = False
        self._began = 0.0
        self._reasons: list[tuple[float, str]] = []

    def wait(self, text: str, now: float) -> bool:
        """It waits for this now; gives whether that is something else than before, and not only another number."""
        if not self._reasons:
            self._began = now
        another = not self.waiting or shape(text) != shape(self._reasons[-1][1])
        if another:
            self._reasons = [*self._reasons[-MOST_REASONS + 1 :], (now, text)]
        else:
            self._reasons[-1] = (self._reasons[-1][0], text)
        self.waiting = True
        return another

    def over(self, now: float) -> ArtifactContent | None:
        """It need not wait any more; None where it never had to."""
        if not self.waiting:
            return None
        self.waiting = False
        return self._table(f"waited {format_duration(now - self._began)}", now)

    def content(self, now: float) -> ArtifactContent:
        """The artifact as it is now."""
        return self._table(f"{self._reasons[-1][1]} (for {format_duration(now - self._began)} until now)", now)

    def _table(self, headline: str, now: float) -> ArtifactContent:
        rows = [f"| {clock(since, now)} | {cell(text)} |" for since, text in reversed(self._reasons)]
        table = "\n".join(["| since | what for |", "|---|---|", *rows])
        return ArtifactContent("waiting", "markdown", f"**{cell(headline)}**\n\n{table}\n", cell(headline))


def shape(text: str) -> str:
    """A text without its numbers: an estimate that only moved is no news for a log."""
    return re.sub(r"\d+", "#", text)


def cell(text: str) -> str:
    """A text of others, harmless in a table of markdown."""
    return re.sub(r"([|<>`*_\[\]])", r"\\\1", " ".join(plain(text).split()))


STEPS = {
    "await_value": 0.0,
    "scan_imports": 0.0,
    "diff_dependencies": 1.0,
    "sync_files": 2.0,
    "install_environment": 3.0,
    "turn": 5.0,
    "start_ray": 6.0,
    "execute_call": 10.0,
    "fetch_outcome": 99.0,
    "fetch_outputs": 99.5,
}
"""Where each step begins. What comes before the function takes a tenth of the bar, however long it takes."""
_FROM, _TO = STEPS["execute_call"], STEPS["fetch_outcome"]
_PERCENT = re.compile(rb"progress:\s*(\d{1,3}(?:\.\d+)?)\s*%", re.IGNORECASE)
LONGEST_LINE = 4096


class LaunchProgress:
    """How far a launch is.

    Attributes:
        percent: from 0 to 100.
    """

    def __init__(self) -> None:
        self.percent, self._text, self._rest = 0.0, "", b""

    def step(self, name: str) -> None:
        """A step begins; after a failed try all begin anew."""
        self.percent, self._text = STEPS.get(name, self.percent), name

    def log(self, data: bytes) -> bool:
        """The function wrote this. Gives whether a line such as "progress: 45 %" says how far it is.

        Pieces may be cut anywhere.
        """
        found = _PERCENT.findall(self._rest + data)
        self._rest = (self._rest + data).rpartition(b"\n")[2].rpartition(b"\r")[2][-LONGEST_LINE:]
        share = float(found[-1]) if found else 101.0
        if share > 100:
            return False
        self.percent = _FROM + (_TO - _FROM) * share / 100
        self._text = f"execute_call: the function is at {share:g}%"
        return True

    def end(self, good: bool) -> None:
        """The launch is over."""
        if good:
            self.percent, self._text = 100.0, "done"
        else:
            self._text = (
                "the function failed" if self._text in {"fetch_outcome", "fetch_outputs"} else f"ended in {self._text}"
            )

    def content(self) -> ArtifactContent:
        """The artifact as it is now."""
        return ArtifactContent("progress", "progress", round(self.percent, 1), self._text)
