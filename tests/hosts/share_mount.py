"""Lets hosts see what is mounted on one of them: `python share_mount.py MARK PATH PID PID...`, that one is first.

Each pid is a host's first process. Mounting by name ends at a host's own mounts, so this hands over the mount itself.
"""

import ctypes
import os
import sys

OPEN_TREE, MOVE_MOUNT = 428, 429
CLONE, FROM_DESCRIPTOR, HERE = 1, 4, -100
libc = ctypes.CDLL(None, use_errno=True)


def checked(answer: int, what: str) -> int:
    """A system call's answer, or its error."""
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return answer


def enter(namespace: int) -> None:
    """Go to a host's mounts."""
    checked(libc.setns(namespace, 0), "setns")


def main() -> None:
    """Take a copy of the mount for each of the other hosts, and put it in the same place."""
    path, first, *others = sys.argv[2:]
    name = path.encode()
    source = os.open(f"/proc/{first}/ns/mnt", os.O_RDONLY)
    targets = [os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY) for pid in others]
    for target in targets:
        enter(source)
        mount = checked(libc.syscall(OPEN_TREE, HERE, name, CLONE), f"open_tree {path}")
        enter(target)
        checked(libc.syscall(MOVE_MOUNT, mount, b"", HERE, name, FROM_DESCRIPTOR), f"move_mount {path}")
        os.close(mount)


if __name__ == "__main__":
    main()
