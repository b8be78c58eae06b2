"""The command: `python -m hosts up|down|status|code` (`make hosts`, `make hosts-down`)."""

from __future__ import annotations

import argparse
import sys

from hosts.lab import Lab, down
from hosts.machine import LabError
from hosts.place import PLAY, Place

LOG_IN = """  ssh -F {config} desi               as alice, by key
  ssh -F {config} bob@desi           by password: {bob}
  ssh -F {config} carol@desi         by password {carol} and a code
  ssh -F {config} dave@desi          by key and a code
A fresh one-time code:  make hosts-code   (or: PYTHONPATH=tests python -m hosts code desi carol)
To end them:            make hosts-down"""


def show(lab: Lab) -> None:
    """Say how to log in."""
    names = ", ".join(f"{host.name} ({host.address})" for host in lab.hosts.values())
    print(f"hosts: {names}")
    print(LOG_IN.format(config=lab.ssh_config, bob=lab.password("bob"), carol=lab.password("carol")))


def found(purpose: str) -> Lab:
    """The lab that must be up."""
    lab = Lab.find(purpose)
    if lab is None:
        raise LabError("no hosts are up: `make hosts`")
    return lab


def up(arguments: argparse.Namespace) -> None:
    """Bring the hosts up, or say that they are."""
    if Lab.find(arguments.purpose):
        print("the hosts are up already")
    show(Lab.up(arguments.purpose))


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="hosts", description=__doc__)
    parser.add_argument("--purpose", default=PLAY, help="which of this checkout's labs")
    verbs = parser.add_subparsers(required=True, dest="verb")
    verbs.add_parser("up").set_defaults(do=up)
    verbs.add_parser("down").set_defaults(do=lambda given: down(Place.of(given.purpose)))
    verbs.add_parser("status").set_defaults(do=lambda given: show(found(given.purpose)))
    code = verbs.add_parser("code")
    code.add_argument("host")
    code.add_argument("user")
    code.set_defaults(do=lambda given: print(found(given.purpose)[given.host].new_code(given.user)))
    arguments = parser.parse_args()
    try:
        arguments.do(arguments)
    except LabError as problem:
        print(f"hosts: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
