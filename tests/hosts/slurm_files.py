"""What a Slurm cluster's hosts have in /etc: one configuration for all, as a site has."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from hosts import cgroups
from hosts.files import write
from hosts.layout import Kind

HOMES, SITE = "shared/home", "shared/etc"
"""Folders of the lab: the homes on all of its hosts, and what their /etc have alike."""
CPUS, MEMORY, GPUS = 4, 4000, 2
"""What each node claims to have, memory in MB."""
CLUSTER = "lab"
SLURM = """ClusterName={cluster}
SlurmctldHost=login
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
LogTimeFormat=iso8601_ms
DebugFlags=Protocol
MpiDefault=none
EnforcePartLimits=ALL
ReturnToService=2
ProctrackType={proctrack}
TaskPlugin={task}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
SlurmdTimeout=10
MessageTimeout=10
KillWait=10
MinJobAge=300
InactiveLimit=0
UnkillableStepTimeout=30
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=10000,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=500
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
AccountingStorageType={storage}
NodeName=DEFAULT Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 State=UNKNOWN
NodeName={nodes} CPUs={cpus} RealMemory={memory} Gres=gpu:fake:{gpus}
PartitionName=DEFAULT Nodes={nodes} PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=cpu Default=YES DefaultTime=10 MaxTime=60
PartitionName=short DefaultTime=1 MaxTime=2 MaxNodes=1
PartitionName=gpu DefaultTime=10 MaxTime=60
PartitionName=closed DefaultTime=10 MaxTime=60 State=DOWN
PartitionName=spare DefaultTime=10 MaxTime=60 PriorityTier=1 PreemptMode=CANCEL GraceTime=5
"""
STORAGE = """accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStorageTRES=gres/gpu"""
CGROUP = """CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace={limits}
"""
SLURMDBD = """AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_accounting
PidFile=/run/slurm/slurmdbd.pid
LogFile=/var/log/slurm/slurmdbd.log
"""
MUNGE_KEY_BYTES = 128


def configuration(nodes: Sequence[str], accounting: bool) -> str:
    """The text of slurm.conf."""
    limits = bool(cgroups.hierarchies())
    return SLURM.format(
        cluster=CLUSTER,
        nodes=",".join(nodes),
        proctrack="proctrack/cgroup" if limits else "proctrack/linuxproc",
        task="task/cgroup" if limits else "task/none",
        storage=STORAGE if accounting else "accounting_storage/none",
        cpus=CPUS,
        memory=MEMORY,
        gpus=GPUS,
    )


def write_site(folder: Path, nodes: Sequence[str], accounting: bool) -> None:
    """The files that all hosts of a cluster have alike, each with its mode, once for the lab."""
    key = folder / "munge/munge.key"
    key.parent.mkdir(parents=True, mode=0o700)
    key.write_bytes(secrets.token_bytes(MUNGE_KEY_BYTES))
    key.chmod(0o400)
    write_nodes(folder, nodes, accounting)


def write_nodes(folder: Path, nodes: Sequence[str], accounting: bool) -> None:
    """Slurm's own files, which name the nodes."""
    gres = "".join(f"NodeName={name} Name=gpu Type=fake File=/run/gpus/fake[0-{GPUS - 1}]\n" for name in nodes)
    write(folder / "slurm/slurm.conf", configuration(nodes, accounting))
    write(folder / "slurm/gres.conf", gres)
    write(folder / "slurm/cgroup.conf", CGROUP.format(limits="yes" if cgroups.hierarchies() else "no"))


def write_slurm(etc: Path, kind: Kind, site: Path, accounting: bool) -> None:
    """One host's share of them."""
    shutil.copytree(site, etc, dirs_exist_ok=True)
    for path in (etc / "munge", etc / "munge/munge.key"):
        shutil.chown(path, "munge", "munge")
    if accounting and kind.slurm == "controller":
        write(etc / "slurm/slurmdbd.conf", SLURMDBD, 0o600)
        shutil.chown(etc / "slurm/slurmdbd.conf", "slurm", "slurm")
