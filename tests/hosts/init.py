"""The first process of a host: gives it a name, folders and devices of its own, then reaps what ends there.

Runs in fresh namespaces (`unshare`), alone and with the standard library only. What it needs to know stands in
`spec.json` in its folder. It says "ready" when the host can be entered.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def mount(*arguments: object) -> None:
    """Mount something in this host only."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def empty(path: str, mode: str = "0755") -> None:
    """Put an empty folder in memory over one of the machine's."""
    if os.path.isdir(path):
        mount("-t", "tmpfs", "-o", f"mode={mode}", "none", path)


def over(folder: Path, path: str) -> None:
    """Let files of the host's own lie over a folder of the machine's."""
    name = path.strip("/").replace("/", ".")
    work, own = folder / f"{name}.work", folder / name
    work.mkdir(exist_ok=True)
    if not own.exists():
        own.mkdir()
        shutil.copystat(path, own)
        os.chown(own, os.stat(path).st_uid, os.stat(path).st_gid)
    mount("-t", "overlay", "-o", f"lowerdir={path},upperdir={own},workdir={work}", "none", path)


def own_folders(folder: Path, home: str) -> None:
    """Folders that have nothing of the machine's in them."""
    mount("--bind", home, "/home")
    for name in ("root", "tmp", "var/tmp", "var/log", "var/spool"):
        mount("--bind", folder / name, f"/{name}")
    empty("/dev/shm", mode="1777")
    empty("/run")
    for path in ("/run/sshd", "/run/lock", "/run/user", "/run/one-time-codes"):
        os.mkdir(path, 0o700 if path.endswith("codes") else 0o755)
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620,gid=5", "none", "/dev/pts")


def pythons(versions: dict[str, str]) -> None:
    """Make home's Pythons reachable for everybody, as a site's installed ones are."""
    for name, source in versions.items():
        os.makedirs(f"/opt/python/{name}", exist_ok=True)
        mount("--bind", "-o", "ro", source, f"/opt/python/{name}")
    subprocess.run(["ldconfig", "-X"], check=True)


def cgroups(controllers: list[str]) -> None:
    """The host's own part of the machine's cgroups, as if it were the whole."""
    empty("/sys/fs/cgroup")
    for name in controllers:
        os.mkdir(f"/sys/fs/cgroup/{name}")
        mount("-t", "cgroup", "-o", name, "none", f"/sys/fs/cgroup/{name}")


def own_devices(folder: Path) -> None:
    """A /dev of the host's own: OAR replaces files in it."""
    new = folder / "dev"
    new.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", "mode=0755", "none", new)
    names = ("null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "fuse")
    present = [f"/dev/{name}" for name in names if os.path.lexists(f"/dev/{name}")]
    subprocess.run(["cp", "-a", *present, str(new)], check=True)
    for name in ("pts", "shm"):
        (new / name).mkdir()
        mount("--rbind", f"/dev/{name}", new / name)
    os.symlink("pts/ptmx", new / "ptmx")
    mount("--move", new, "/dev")


def without_registry() -> None:
    """Nothing on this host says or holds where packages come from."""
    for name in ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "/etc/uv/uv.toml"):
        if os.path.exists(name):
            os.remove(name)


def settle(folder: Path, spec: dict[str, Any]) -> None:
    """Make the host. The folders it is made from are hidden last."""
    socket.sethostname(spec["name"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    mount("-t", "proc", "proc", "/proc")
    over(folder, "/etc")
    if not spec["registry"]:
        without_registry()
    over(folder, "/opt") if spec["registry"] else mount("--bind", folder / "opt", "/opt")
    over(folder, "/usr/local")
    pythons(spec["pythons"])
    own_folders(folder, spec["home"])
    if spec["oar"]:
        over(folder, "/var/lib/oar")
    if spec["oar"] == "node":
        own_devices(folder)
    if "node" in (spec["slurm"], spec["oar"]):
        cgroups(spec["cgroups"])
    for path in spec["hidden"]:
        empty(path, mode="0555")


def reap() -> None:
    """Collect whoever ends, until this process is ended itself."""
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def main() -> None:
    """Make the host of the folder in the last argument."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    folder = Path(sys.argv[-1])
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "pid").write_text(os.readlink("/proc/self"))
    os.chdir("/")
    os.umask(0o022)
    settle(folder, spec)
    print("ready", flush=True)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    reap()


if __name__ == "__main__":
    main()
