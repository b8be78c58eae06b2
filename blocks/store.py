"""The store at home: payloads by the digest of their content, and a record of each run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.core.errors import PayloadError, UnknownRunError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.remote.shared import payload, pickling

if TYPE_CHECKING:
    from slurm_ray_flow.core.scan import Scan


@dataclasses.dataclass(frozen=True)
class Stored:
    """A payload in the store: its SHA-256 and its size in bytes."""

    digest: str
    size: int


def object_path(digest: str) -> Path:
    """The path of the payload of this digest, whether or not it is there."""
    return home() / "store" / digest[:2] / digest[2:]


def put(value: object, what: str) -> Stored:
    """Pickle a value into the store.

    Args:
        what: the name of the value in the error, such as "the argument 'data'".

    Raises:
        PayloadError: the value can't be pickled.
    """
    folder = private_folder(home() / "store")
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
    os.close(descriptor)
    try:
        digest, size = payload.write(temporary, value, pickling.dump)
    except Exception as error:
        Path(temporary).unlink(missing_ok=True)
        raise PayloadError(
            f"{what} can't be pickled: {type(error).__name__}: {error}",
            advice="give plain data, and open files, generators, locks and connections inside the function",
        ) from error
    private_folder(object_path(digest).parent)
    os.replace(temporary, object_path(digest))
    return Stored(digest, size)


def get(digest: str) -> Any:
    """The value of a payload.

    Raises:
        PayloadError: it is not in the store, or its bytes have another digest.
    """
    try:
        os.utime(object_path(digest))  # a used payload does not expire
        return payload.read(str(object_path(digest)), pickling.load, sha256=digest)
    except FileNotFoundError:
        raise PayloadError(
            "an argument of this run is no longer in the store", where=str(object_path(digest)), advice="start it anew"
        ) from None


def put_bytes(data: bytes, digest: str) -> None:
    """Put bytes into the store under their digest."""
    try:
        os.utime(object_path(digest))  # used bytes do not expire
    except FileNotFoundError:
        write_whole(object_path(digest), data)


def get_bytes(digest: str) -> bytes:
    """The bytes of this digest."""
    return object_path(digest).read_bytes()


def record_path(run_id: str) -> Path:
    """The path of a run's record."""
    return home() / "runs" / f"{run_id}.json"


def result_folder(run_id: str) -> Path:
    """The folder of the value that Prefect keeps of a run, beside the record, and removed with it."""
    return record_path(run_id).with_suffix(".result")


def cancel_request(run_id: str) -> Path:
    """The file that asks a launch which waits at home to cancel its run; it is removed with the run's value."""
    return result_folder(run_id) / "cancel"


def save_record(record: RunRecord) -> None:
    """Save the record of a run."""
    write_whole(record_path(record.run_id), record.to_json().encode())


def no_longer_warm(record: RunRecord) -> None:
    """Note that a run's allocation has ended; the file keeps its time, and so its position in lists of runs."""
    path = record_path(record.run_id)
    with contextlib.suppress(OSError):
        times = path.stat()
        save_record(dataclasses.replace(record, warm=False))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def records() -> Iterator[RunRecord]:
    """All records, the newest first."""
    return (record for _, record in records_with_paths())


def records_with_paths() -> Iterator[tuple[Path, RunRecord]]:
    """All records with their files, the newest first; damaged ones are left out."""
    paths = sorted((home() / "runs").glob("[!.]*.json"), key=changed, reverse=True)
    for path in paths:
        if record := _read(path):
            yield path, record


def changed(path: Path) -> float:
    """When a file was written last, in seconds since 1970; 0 where it is gone."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def known_record(run_id: str) -> RunRecord | None:
    """The record of exactly this id, or None."""
    return _read(record_path(run_id))


def _read(path: Path) -> RunRecord | None:
    try:
        return RunRecord.from_json(path.read_text())
    except (OSError, ValueError, TypeError):
        return None


def find_record(run_id: str) -> RunRecord:
    """The record of this id, or of the one id that starts so.

    Raises:
        UnknownRunError: no id, or several ids start so.
    """
    if run_id and (exact := record_path(run_id)).is_file():
        try:
            return RunRecord.from_json(exact.read_text())
        except ValueError as error:
            advice = "start the function again; its files on the cluster go with `srf clean`"
            raise UnknownRunError(
                f"the record of run {run_id!r} is damaged", where=str(exact), advice=advice
            ) from error
    matches = [record for record in records() if run_id and record.run_id.startswith(run_id)]
    if len(matches) == 1:
        return matches[0]
    text = f"there is no run {run_id!r}"
    if matches:
        shown_ids = ", ".join(record.run_id[: len(run_id) + 8] for record in matches[:4])
        text = f"{len(matches)} runs start with {run_id!r}: {shown_ids}{', ...' if matches[4:] else ''}"
    raise UnknownRunError(text, where=str(home() / "runs"), advice="`srf runs` lists them")


def short_digest(text: str) -> str:
    """A short name for a text, the same in every process."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


_scans: dict[str, Scan] = {}


def put_scan(scan: Scan) -> str:
    """Put a scan into the store; gives its digest."""
    data = json.dumps(scan.to_json(), sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    put_bytes(data, digest)
    _scans.clear()
    _scans[digest] = scan
    return digest


def get_scan(digest: str) -> Scan:
    """The scan of a digest that `put_scan` gave."""
    from slurm_ray_flow.core.scan import Scan

    return _scans.get(digest) or Scan.from_json(json.loads(get_bytes(digest)))
