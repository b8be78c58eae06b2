# ruff: noqa: B006, B008, DTZ001, UP045 - as users write
"""A file as a user deploys it: typed parameters, annotations as texts, classes of its own."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from pathlib import Path
from typing import Literal, Optional

import pydantic

from slurm_ray_flow import slurm_ray_flow


class Model(pydantic.BaseModel):
    number: int = 1


@dataclasses.dataclass
class Pair:
    left: int
    right: float = 2.0


@slurm_ray_flow
def typed(
    count: int,
    model: Model = Model(),
    pair: Optional[Pair] = None,
    kind: Literal["a", "b"] = "a",
    place: Path = Path("x"),
    when: datetime.datetime = datetime.datetime(2020, 1, 1),
    values: list[float] = [],
    extra=None,
) -> str:
    said = extra(count) if extra else None
    text = repr((count, model, pair, kind, place, when.year, len(values), said))
    print("typed", text, flush=True)
    return text


@slurm_ray_flow
def wait(go: str) -> int:
    Path(go + ".pid").write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.05)
    print("gone on", flush=True)
    return 42


@slurm_ray_flow
async def wait_async(go: str) -> int:
    return wait(go)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        typed.serve(name="by-name")
    elif sys.argv[1] == "wait-served":
        wait.serve(name="waiting")
    elif sys.argv[1] == "submit":
        print(wait.submit(sys.argv[2]).run_id, flush=True)
    elif sys.argv[1] == "submit-async":
        print(wait_async.submit(sys.argv[2]).run_id, flush=True)
    else:
        retries = len(sys.argv) - 2
        print("value", wait.with_options(retries=retries)(sys.argv[1]), flush=True)
