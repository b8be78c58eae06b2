"""`srf grid user`, `token` and `cap`: who shares the grid's database, with which shares, and the caps of clusters."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slurm_ray_flow.cli.grid import grid_client
from slurm_ray_flow.cli.names import A_CLUSTER
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_table, print_text, tell
from slurm_ray_flow.core.errors import OptionError

if TYPE_CHECKING:
    from slurm_ray_flow.core.grid.model import User

NO_DEFAULT = Parameter(show_default=False)


def user(
    name: Annotated[str | None, NO_DEFAULT] = None,
    *,
    weight: Annotated[float | None, NO_DEFAULT] = None,
    admin: Annotated[bool | None, NO_DEFAULT] = None,
    json: Json = False,
) -> None:
    """Show the users who share the grid's database, or change one of them, as an administrator of the grid.

    Examples:
        srf grid user

        srf grid user alice --weight 2

    Args:
        name: The user.
        weight: The user's share of each cluster among those of all users; 1 at first.
        admin: Have the user administer the grid, or no longer.
    """
    client = grid_client()
    if name is None:
        if weight is not None or admin is not None:
            raise OptionError("whose share or role is to change is not said", advice="write srf grid user NAME ...")
        found = client.users()
    else:
        found = [client.change_user(name, weight, admin)]
    if json:
        print_json([dataclasses.asdict(one) for one in found])
    elif found:
        print_table(["user", "weight", "administrator", "token"], list(map(_row, found)))
    else:
        print_text("This grid has no users: one home has its database to itself.")


def _row(user: User) -> list[str]:
    return [user.name, f"{user.weight:g}", "yes" if user.is_admin else "", "yes" if user.has_token else "revoked"]


def token(name: str, *, revoke: Annotated[bool, Switch] = False, json: Json = False) -> None:
    """Make a user's token for a grid that several users share, or revoke it, as an administrator of the grid.

    The token is shown this once. The first one is that of this home, whose user administers the grid.

    Examples:
        srf grid token alice

        srf grid token alice --revoke

    Args:
        name: The user. An earlier token of the same user is void at once.
        revoke: Let the user in no longer.
    """
    client = grid_client()
    if revoke:
        client.revoke_token(name)
        print_json({"user": name, "token": None}) if json else print_text(f"{name} has no token any more.")
        return
    made = client.make_token(name)
    tell(f"The token of {name}, for $SRF_GRID_TOKEN or the file grid/user_token at home (chmod 600):")
    print_json({"user": name, "token": made}) if json else print_text(made)


def cap(
    cluster: Annotated[str | None, A_CLUSTER, NO_DEFAULT] = None,
    pilots: Annotated[str | None, NO_DEFAULT] = None,
    *,
    json: Json = False,
) -> None:
    """Show or set how many pilots all campaigns together have at most on a cluster, whoever began them.

    Without a cap a machine has one pilot at a time, and a scheduler as many as campaigns ask for.

    Examples:
        srf grid cap

        srf grid cap curnagl 8

        srf grid cap curnagl none

    Args:
        cluster: The cluster's name.
        pilots: How many, or "none" for no cap.
    """
    client = grid_client()
    name = (cluster or "").rpartition("/")[2]
    found = client.caps() if cluster is None else client.set_cap(name, _count(name, pilots))
    if json:
        print_json(found)
    elif found:
        print_table(["cluster", "pilots at most"], [[name, str(count)] for name, count in found.items()])
    else:
        print_text("No cluster has a cap of its own.")


def _count(cluster: str, pilots: str | None) -> int | None:
    if pilots == "none":
        return None
    if pilots is None or not pilots.isdecimal():
        advice = f"write srf grid cap {cluster} 8, or srf grid cap {cluster} none"
        raise OptionError(f"the cap {pilots!r} must be a number of pilots, or none", advice=advice)
    return int(pilots)
