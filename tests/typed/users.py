"""A user's file as type checkers see it: `test_typing.py` has mypy and pyright read it, and nobody runs it."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from slurm_ray_flow import Handle, Handles, as_completed, attach, slurm_ray_flow


@slurm_ray_flow
def square(number: int, power: float = 2.0) -> float:
    return float(number**power)


@slurm_ray_flow(cluster="desi", nodes=2, memory="4G")
def shout(word: str, *, times: int = 1) -> list[str]:
    return [word.upper()] * times


@slurm_ray_flow
async def later(number: int) -> str:
    return str(number)


@slurm_ray_flow(keep_warm="5m")
async def much_later(number: int) -> bytes:
    return bytes(number)


class Model:
    @slurm_ray_flow
    def score(self, fold: int) -> float:
        return fold / 2

    @slurm_ray_flow(memory="1G")
    def name(self, prefix: str = "") -> str:
        return prefix

    @slurm_ray_flow
    async def score_later(self, fold: int) -> float:
        return fold / 2


def right() -> None:
    assert_type(square(2), float)
    assert_type(square(2, power=3), float)
    assert_type(square.local(2), float)
    assert_type(square.script(2), str)
    assert_type(square.submit(2), Handle[float])
    assert_type(square.submit(2).result(timeout=3), float)
    assert_type(square.with_options(memory="1G")(2), float)
    assert_type(shout("a", times=2), list[str])
    assert_type(shout.submit("a").result(), list[str])
    assert_type(later.submit(1), Handle[str])
    assert_type(much_later.submit(1).result(), bytes)
    assert_type(attach("0123"), Handle[Any])


def right_map() -> None:
    assert_type(square.map([1, 2], max_parallel=2), Handles[float])
    assert_type(square.map([1, 2], [1.0, 2.0]).results(), list[float])
    assert_type(shout.map(["a"], times=2)[0], Handle[list[str]])
    assert_type(later.map([1, 2]).results(), list[str])
    for handle in as_completed(square.map([1])):
        assert_type(handle.result(), float)


def right_methods(model: Model) -> None:
    assert_type(model.score(1), float)
    assert_type(model.score.submit(1), Handle[float])
    assert_type(model.name(prefix="a"), str)
    assert_type(model.name.map(["a"]).results(), list[str])
    assert_type(model.score_later.submit(1), Handle[float])


async def right_async(model: Model) -> None:
    coming = later(1)
    assert_type(await coming, str)
    assert_type(await later(1), str)
    assert_type(await much_later(1), bytes)
    assert_type(await model.score_later(1), float)


def wrong(model: Model) -> None:
    square("two")  # error
    square()  # error
    square.submit(word="a")  # error
    square.local("two")  # error
    square.script("two")  # error
    shout("a", 2)  # error
    shout.submit("a", times="2")  # error
    model.score("one")  # error
    model.score.submit()  # error
    number: str = square(2)  # error
    text: int = square.submit(2).result()  # error
    print(number, text)
    slurm_ray_flow(nodes="two")  # error
    slurm_ray_flow(memmory="2G")  # error
    square.map([1], max_parallel="all")  # error
