"""A STAND-IN for Apptainer, which Debian 12 has not: what of `apptainer exec` a run depends on, and nothing else.

An image is a folder here, as a sandbox is one there, whose `bin` comes first on the PATH inside. As the real one (its
sources were read: cmd/starter, internal/pkg/util/env of version 1.4), it refuses flags that it does not know, lets no
variable in but a few and those that begin with APPTAINERENV_, starts the program as a child that dies with it, hands on
signals, and ends as that ended. What a site may keep out of a container, the users' homes and /srv, is not seen inside
unless a `--bind` says so: more than most sites do.
"""

import argparse
import ctypes
import os
import signal
import stat
import sys

ALWAYS = {"TERM", *(f"{name}_proxy" for name in ("http", "https", "no", "all", "ftp"))}
PREFIX = "APPTAINERENV_"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HIDDEN = ("/home", "/srv")
_NEW_USER, _NEW_MOUNTS, _BIND, _RECURSIVE, _PRIVATE, _DEATH_SIGNAL = 0x10000000, 0x20000, 0x1000, 0x4000, 1 << 18, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Flags(argparse.ArgumentParser):
    """Says what the real one says of a flag that there is none of."""

    def error(self, message):
        sys.stderr.write(f'Error for command "exec": {message}\n')
        sys.exit(1)


def parsed(arguments):
    flags = Flags(prog="apptainer", add_help=False, allow_abbrev=False)
    flags.add_argument("-e", "--cleanenv", action="store_true")
    flags.add_argument("-B", "--bind", action="append", default=[])
    flags.add_argument("--nv", action="store_true")
    flags.add_argument("image")
    flags.add_argument("command", nargs=argparse.REMAINDER)
    return flags.parse_args(arguments)


def fatal(words):
    sys.stderr.write(f"FATAL:   {words}\n")
    sys.exit(255)


def environment(image, clean):
    given = dict(os.environ)
    inside = {name: text for name, text in given.items() if name in ALWAYS or name.lower() in ALWAYS or not clean}
    inside = {name: text for name, text in inside.items() if not name.startswith(("APPTAINER", "SINGULARITY"))}
    if clean:
        inside["LANG"] = "C"
    own = {name[len(PREFIX) :]: text for name, text in given.items() if name.startswith(PREFIX)}
    path = own.pop("PATH", f"{image}/bin:{DEFAULT_PATH}")
    return {**inside, **own, "HOME": given["HOME"], "PATH": path, "APPTAINER_CONTAINER": image}


def mount(source, target, kind=None, flags=0):
    if _libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None):
        fatal(f"while mounting {source} to {target}: {os.strerror(ctypes.get_errno())}")


def enter(image, binds):
    """A mount namespace in which what is hidden is empty but for what is bound."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_MOUNTS | (_NEW_USER if user else 0)):
        fatal(f"while creating namespaces: {os.strerror(ctypes.get_errno())}")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    wanted = [path for path in [image, *binds] if path.startswith(HIDDEN)]
    beside = "/mnt"
    mount("tmpfs", beside, "tmpfs")
    for number, path in enumerate(wanted):
        if not os.path.exists(path):
            fatal(f"mount source {path} doesn't exist")
        os.mkdir(f"{beside}/{number}")
        mount(path, f"{beside}/{number}", flags=_BIND | _RECURSIVE)
    for path in HIDDEN:
        if os.path.isdir(path):
            mount("tmpfs", path, "tmpfs")
    for number, path in enumerate(wanted):
        os.makedirs(path, exist_ok=True)
        mount(f"{beside}/{number}", path, flags=_BIND | _RECURSIVE)


def run(command, variables, folder):
    """The program as a child that dies with this process."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        try:
            os.chdir(folder)
        except OSError:
            os.chdir("/")
        try:
            os.execvpe(command[0], command, variables)
        except OSError as error:
            fatal(f'"{command[0]}": {error.strerror}')
    for number in {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}:
        signal.signal(number, lambda got, _: os.kill(child, got))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


def main():
    if sys.argv[1:2] != ["exec"]:
        fatal("this stand-in knows `exec` alone")
    asked = parsed(sys.argv[2:])
    if not os.path.exists(asked.image):
        fatal(
            f"could not open image {asked.image}: failed to retrieve path for {asked.image}: no such file or directory"
        )
    if not stat.S_ISDIR(os.stat(asked.image).st_mode):
        fatal(f"could not open image {asked.image}: image format not recognized")
    here = os.getcwd()
    variables = environment(asked.image, asked.cleanenv)
    binds = [bind.split(":")[0] for text in asked.bind for bind in text.split(",")]
    enter(asked.image, binds)
    sys.exit(run(asked.command, variables, here))


if __name__ == "__main__":
    main()
