"""Those who share the grid's database in PostgreSQL: their tokens, their weights, and where the engine of each runs.

A database is shared from its first token on. Before that, and in SQLite, it has no users, and nobody needs a token.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Float, Row, cast, func, insert, or_, select, update

from slurm_ray_flow.core.errors import GridError, GridTokenError, NotAllowedError, OptionError
from slurm_ray_flow.core.grid.model import User
from slurm_ray_flow.grid.database import URL_VARIABLE, Database
from slurm_ray_flow.grid.tables import campaigns, users

ENGINE_SECONDS = 60.0
"""After so long without a sign of a user's engine another home of that user may have one."""
USERS = "users"
"""What is locked while users are changed."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
NOW = cast(func.extract("epoch", func.clock_timestamp()), Float(53))
"""The time of the database, since clocks of several hosts differ."""
_AN_ADMIN_MAKES_ONE = (
    "an administrator of the grid makes one with `srf grid token NAME`; "
    "it goes into $SRF_GRID_TOKEN, or the file grid/user_token in ~/.slurm-ray-flow"
)


class Users:
    """The users of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[User]:
        """All users, by name."""
        if self._database.is_sqlite:
            return []
        with self._database.reading() as connection:
            return [_user(row) for row in _rows(connection)]

    def of_token(self, token: str) -> User:
        """Whose a token is.

        Raises:
            GridTokenError: it is nobody's.
        """
        if self._database.is_sqlite:
            return _user(_matching([], token))
        with self._database.reading() as connection:
            return _user(_matching(_rows(connection), token))

    def issue(self, name: str) -> str:
        """Make a token for a user, in the place of an earlier one; gives it, and keeps its SHA-256 alone.

        The first user is an administrator, and has all campaigns that the database had before.

        Raises:
            OptionError: this can't be a name.
            GridError: the database is not one that several users share.
        """
        if self._database.is_sqlite:
            advice = f"name a PostgreSQL database in ${URL_VARIABLE}"
            raise GridError("this grid has a database of its own, and needs no tokens", advice=advice)
        if not NAME.fullmatch(name):
            raise OptionError(
                f"{name!r} can't be the name of a user", advice="take letters, digits, `.`, `_`, `@`, `-`"
            )
        token = secrets.token_urlsafe(32)
        with self._database.locking(USERS) as connection:
            known = _rows(connection)
            if any(row.name == name for row in known):
                connection.execute(update(users).where(users.c.name == name).values(token=_digest(token)))
                return token
            values = {"name": name, "token": _digest(token), "weight": 1.0, "engine": "", "seen_at": 0.0}
            connection.execute(insert(users).values(**values, is_admin=int(not known)))
            if not known:
                connection.execute(update(campaigns).values(user=name))
        return token

    def revoke(self, name: str) -> None:
        """Let a user in no longer.

        Raises:
            GridError: there is no such user, or nobody else is an administrator.
        """
        self._change(name, token="")

    def set(self, name: str, weight: float | None, is_admin: bool | None) -> User:
        """Change what is given of a user.

        Raises:
            GridError: there is no such user, or nobody else is an administrator.
            OptionError: this can't be a weight.
        """
        if weight is not None and not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise OptionError(f"weight={weight!r} must be a number above 0")
        given = {"weight": weight, "is_admin": None if is_admin is None else int(is_admin)}
        return self._change(name, **{key: value for key, value in given.items() if value is not None})

    def renew(self, token: str, engine: str) -> User | None:
        """The user of an engine, which is noted as that user's only one for a minute; None where there are no users.

        Args:
            token: the token of the engine's home; "" for none.
            engine: names the home, and its host.

        Raises:
            GridTokenError: the token is missing, wrong or revoked.
            NotAllowedError: this user's engine runs at another home.
        """
        if self._database.is_sqlite:
            return None
        with self._database.writing() as connection:
            if not (rows := _rows(connection)):
                return None
            row = _matching(rows, token)
            free = or_(users.c.engine.in_(["", engine]), users.c.seen_at < NOW - ENGINE_SECONDS)
            noted = update(users).where(users.c.name == row.name, free).values(engine=engine, seen_at=NOW)
            if not connection.execute(noted).rowcount:
                what, advice = f"the engine of {row.name} runs elsewhere", "end it there with `srf down`"
                raise NotAllowedError(what, where=row.engine, advice=advice)
            return _user(row)

    def leave(self, engine: str) -> None:
        """Note that an engine has ended, so that its user may have one at another home at once."""
        if not self._database.is_sqlite:
            with self._database.writing() as connection:
                connection.execute(update(users).where(users.c.engine == engine).values(engine=""))

    def _change(self, name: str, **values: Any) -> User:
        with self._database.locking(USERS) as connection:
            if values and not connection.execute(update(users).where(users.c.name == name).values(values)).rowcount:
                raise _unknown(name)
            rows = _rows(connection)
            if not any(row.is_admin and row.token for row in rows):
                what = f"{name} is the last administrator of the grid who has a token"
                raise GridError(what, advice="make another one first: `srf grid user NAME --admin`")
            found = [_user(row) for row in rows if row.name == name]
        if not found:
            raise _unknown(name)
        return found[0]


def _unknown(name: str) -> GridError:
    return GridError(f"the grid has no user {name!r}", advice="`srf grid user` lists them, `srf grid token` makes one")


def _rows(connection: Connection) -> Sequence[Row[Any]]:
    return connection.execute(select(users).order_by(users.c.name)).all()


def _user(row: Row[Any]) -> User:
    return User(row.name, row.weight, bool(row.is_admin), bool(row.token))


def _matching(rows: Sequence[Row[Any]], token: str) -> Row[Any]:
    """The row of a token. Each is compared, in a time that says nothing of how much of it is right."""
    if not rows:
        advice = "unset $SRF_GRID_TOKEN, and remove the file grid/user_token in ~/.slurm-ray-flow"
        raise GridTokenError("this grid has no users, and this home has a token of another one", advice=advice)
    if not token:
        raise GridTokenError(
            "several users share this grid, and this home has no token for it", advice=_AN_ADMIN_MAKES_ONE
        )
    digest = _digest(token)
    found = [row for row in rows if hmac.compare_digest(row.token, digest)]
    if not found:
        raise GridTokenError("the grid's token is wrong, or was revoked", advice=_AN_ADMIN_MAKES_ONE)
    return found[0]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
