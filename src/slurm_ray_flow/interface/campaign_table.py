"""A campaign as a table in a file: CSV, JSON lines or Parquet.

Rows go to a temporary file first, since all of them decide which columns there are and of which type; so a table of any
length takes little memory. It gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import importlib
import io
import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid import model
from slurm_ray_flow.core.grid.table import Cells, argument_cells, columns_of, value_cells
from slurm_ray_flow.grid.arguments import ArgumentReader
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.interface.campaign_outcomes import OutcomeReader, value_of
from slurm_ray_flow.interface.campaign_start import PARAMETERS
from slurm_ray_flow.remote.shared import pickling

PAGE = 5000
"""So many items are asked for at a time, and so many rows are a group of a Parquet file."""
MOST_COLUMNS = 5000


def write_table(campaign: model.Campaign, client: GridClient, path: Path) -> int:
    """See `Campaign.to_table`."""
    write = _writer_for(path)
    with tempfile.TemporaryFile() as spool:
        table = _Table(spool)
        for row in _rows(campaign, client):
            table.add(*row)
        with _whole(path) as temporary:
            write(temporary, table)
    return table.count


def _writer_for(path: Path) -> Callable[[Path, _Table], None]:
    """The function that writes a file of this kind.

    Raises:
        OptionError: there is none, or it lacks a package.
    """
    writers = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
    kind = path.suffix.lower()
    if kind not in writers:
        advice = "let its name end with .csv, .jsonl or .parquet"
        what = f"a table can't be written as {kind or 'a file without an ending'}"
        raise OptionError(what, where=str(path), advice=advice)
    if kind == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            what = f"a .parquet file is written by pyarrow, which can't be imported: {error}"
            raise OptionError(what, where=str(path), advice="install it (pip install pyarrow), or write .csv") from None
    if not path.absolute().parent.is_dir():
        raise OptionError("there is no such folder", where=str(path.absolute().parent), advice="make it first")
    return writers[kind]


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside its place that takes its name in the end, and is removed where something fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(campaign: model.Campaign, client: GridClient) -> Iterator[tuple[Cells, Cells, Cells]]:
    """For each item: cells of its own, of its arguments and of its value."""
    arguments = ArgumentReader(CampaignFolder(campaign.id).path)
    outcomes = OutcomeReader(campaign.id)
    parameters: list[str] = list(campaign.options.get(PARAMETERS) or ())
    for first in range(0, campaign.total, PAGE):
        rows = client.items(campaign.id, first, min(PAGE, campaign.total - first))
        for row, (_, data) in zip(rows, arguments.bytes_of(row["number"] for row in rows), strict=True):
            own = {name: row[name] for name in ("number", "state", "seconds", "error")}
            value: Cells = {}
            if row["state"] == "succeeded":
                try:
                    value = value_cells(value_of(outcomes.frame_at(row["offset"], row["length"])))
                except Exception as error:  # its classes may be nowhere to be found here
                    own["error"] = f"its value can't be read here: {type(error).__name__}: {error}"
            yield own, _cells_of(data, parameters), value


def _cells_of(data: bytes, parameters: list[str]) -> Cells:
    try:
        args, kwargs = pickling.load(io.BytesIO(data), [])
    except Exception as error:
        name = parameters[0] if parameters else "argument0"
        return {name: f"can't be read here: {type(error).__name__}: {error}"}
    return argument_cells(args, kwargs, parameters)


class _Table:
    """Rows in a temporary file, with the names and types of all columns."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool, self.count = spool, 0
        self._arguments: dict[str, None] = {}
        self._values: dict[str, None] = {}
        self.types: dict[str, set[type]] = {}

    def add(self, own: Cells, arguments: Cells, value: Cells) -> None:
        self._arguments.update(dict.fromkeys(arguments))
        self._values.update(dict.fromkeys(value))
        if len(self._arguments) + len(self._values) > MOST_COLUMNS:
            what = f"the values have more than {MOST_COLUMNS} different keys, each of which would be a column"
            raise OptionError(what, advice="read them with results() and write a table of your own")
        row = {**own, **arguments, **value}
        for name, cell in row.items():
            is_large = type(cell) is int and not -(1 << 63) <= cell < 1 << 63
            self.types.setdefault(name, set()).add(str if is_large else type(cell))
        pickle.dump(row, self._spool, protocol=5)
        self.count += 1

    @property
    def columns(self) -> list[str]:
        return columns_of(list(self._arguments), list(self._values))

    def __iter__(self) -> Iterator[Cells]:
        self._spool.seek(0)
        for _ in range(self.count):
            yield pickle.load(self._spool)


def _created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def _write_csv(path: Path, table: _Table) -> None:
    columns = table.columns
    with open(_created(path), "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for row in table:
            writer.writerow([row.get(name) for name in columns])


def _write_json_lines(path: Path, table: _Table) -> None:
    columns = table.columns
    with open(_created(path), "w", encoding="utf-8") as stream:
        for row in table:
            cells = {name: _json_cell(row[name]) for name in columns if name in row}
            stream.write(json.dumps(cells, ensure_ascii=False, default=str) + "\n")


def _json_cell(cell: Any) -> Any:
    """A cell as JSON has it, which has no NaN and no infinity."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return None if math.isnan(cell) else str(cell)
    return cell


def _write_parquet(path: Path, table: _Table) -> None:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    casts = {name: _arrow_type(arrow, table.types.get(name, set())) for name in table.columns}
    schema = arrow.schema([(name, kind) for name, (kind, _) in casts.items()])
    with parquet.ParquetWriter(str(path), schema) as writer:
        for rows in _groups(table, PAGE):
            arrays = [
                arrow.array([None if (cell := row.get(name)) is None else cast(cell) for row in rows], kind)
                for name, (kind, cast) in casts.items()
            ]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _arrow_type(arrow: Any, types: set[type]) -> tuple[Any, Callable[[Any], Any]]:
    """The type of a column whose cells have these types, and what makes one of it of a cell."""
    kinds = types - {type(None)}
    if kinds == {bool}:
        return arrow.bool_(), bool
    if kinds == {int}:
        return arrow.int64(), int
    if kinds and kinds <= {int, float}:
        return arrow.float64(), float
    if kinds == {datetime.date}:
        return arrow.date32(), _itself
    return arrow.string(), _text


def _itself(cell: Any) -> Any:
    return cell


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(cell) if isinstance(cell, datetime.date) else json.dumps(cell)


def _groups(rows: Iterable[Cells], size: int) -> Iterator[list[Cells]]:
    group: list[Cells] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
