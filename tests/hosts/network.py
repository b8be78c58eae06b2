"""The cables of a lab: one bridge for each network, one pair of virtual network cards for each host on it."""

from __future__ import annotations

import contextlib
import json
import os

from hosts.layout import HOME, Kind
from hosts.machine import LabError, command, until
from hosts.place import Place, address, physical

NETWORKS = ("outside", "inside")
CANDIDATES = 200


def free_range(place: Place) -> str:
    """A range of addresses that nothing on this machine uses, in the form 10.20.30."""
    used = command("ip", "-4", "-o", "address") + command("ip", "-4", "route")
    start = int(place.identity, 16)
    for step in range(CANDIDATES):
        number = start + step
        base = f"10.{16 + number // 256 % 200}.{number % 256}"
        if f" {base}." not in f" {used}" and f"\n{base}." not in used:
            return base
    raise LabError("no free range of addresses below 10.0.0.0/8")


def lay_bridges(place: Place, base: str) -> None:
    """Make the lab's networks; home stands in the outside one and finds nobody in the other."""
    for network in NETWORKS:
        bridge = place.bridge(network)
        command("ip", "link", "add", bridge, "type", "bridge")
        command("ip", "link", "set", bridge, "up")
    command("ip", "address", "add", f"{base}.{HOME}/25", "dev", place.bridge("outside"))
    command("ip", "route", "add", f"{base}.128/25", "dev", place.bridge("outside"))


def connect(place: Place, base: str, kind: Kind, pid: int) -> None:
    """Give the host of this first process a network card in each of its networks."""
    for number, network in enumerate(kind.networks):
        card, link, own = f"eth{number}", place.link(kind, network), address(base, kind, network)
        there = physical(base, kind, network)
        command("ip", "link", "add", link, "type", "veth", "peer", "name", card, "address", there, "netns", str(pid))
        command("ip", "link", "set", link, "master", place.bridge(network), "up")
        inside = ["nsenter", "-t", str(pid), "-n", "ip"]
        command(*inside, "address", "add", f"{own}/25", "dev", card)
        command(*inside, "link", "set", card, "up")
        if network == "outside":
            command("ip", "neighbour", "replace", own, "lladdr", there, "dev", place.bridge(network))


def interfaces(place: Place) -> list[str]:
    """The lab's network interfaces on this machine's side."""
    return [name for name in os.listdir("/sys/class/net") if name.startswith(place.prefix)]


def remove(place: Place) -> None:
    """Take the lab's interfaces away."""
    for name in interfaces(place):
        with contextlib.suppress(LabError):  # a cable goes by itself when its host has gone
            command("ip", "link", "delete", name)
    until(lambda: not interfaces(place), "the lab's network interfaces are gone")


def is_up(link: str) -> bool:
    """Whether a cable is plugged in."""
    return "UP" in json.loads(command("ip", "-j", "link", "show", link))[0]["flags"]
