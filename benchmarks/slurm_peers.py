"""What others take on the same Slurm: submitit on the login node, the best script by hand, and Ray's own command."""

from __future__ import annotations

SUBMITIT = """
import sys, time, submitit
def plus_one(number): return number + 1
executor = submitit.AutoExecutor(folder=sys.argv[1], cluster="slurm")
executor.update_parameters(timeout_min=5, slurm_partition="cpu")
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    assert executor.submit(plus_one, 1).result() == 2
    print(time.perf_counter() - began, flush=True)
"""

SQUARES = """
import socket, sys, time, ray
ray.init(address=sys.argv[1], logging_level="warning")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.05)
@ray.remote(scheduling_strategy="SPREAD")
def square(number):
    return number * number, socket.gethostname()
found = ray.get([square.remote(number) for number in range(100)])
assert sum(value for value, _ in found) == 328350
open(sys.argv[2], "w").write("328350")
"""

# One step for head and worker, ports of Ray's own choice but the head's, the driver beside the head; whoever is left
# when the driver has ended is ended with the step.
BY_HAND = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --partition=cpu --output={folder}/by-hand.log
export PATH={binaries}:$PATH RAY_USAGE_STATS_ENABLED=0 ROOT={folder} HEAD=$(getent hosts $(hostname) | cut -d' ' -f1)
PORT=$((20000 + SLURM_JOB_ID % 10000))
srun --cpu-bind=none bash -c '
  OWN=$(getent hosts $(hostname) | cut -d" " -f1); OPTIONS="--node-ip-address=$OWN --num-cpus=2 --block"
  if [ $SLURM_PROCID = 0 ]; then
    ray start --head --port='$PORT' --temp-dir=/tmp/peer-$SLURM_JOB_ID --include-dashboard=false $OPTIONS &
    until python -c "import socket; socket.create_connection((\\"'$HEAD'\\", '$PORT'))" 2>/dev/null; do sleep 0.1; done
    python $ROOT/squares.py '$HEAD:$PORT' $ROOT/$1
  else
    until python -c "import socket; socket.create_connection((\\"'$HEAD'\\", '$PORT'))" 2>/dev/null; do sleep 0.1; done
    ray start --address='$HEAD:$PORT' $OPTIONS
  fi' - $1 &
STEP=$!
until [ -e {folder}/$1 ]; do sleep 0.05; kill -0 $STEP || exit 1; done
kill $STEP; wait $STEP; rm -rf /tmp/peer-$SLURM_JOB_ID
"""

SYMMETRIC = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --partition=cpu --output={folder}/symmetric.log
export PATH={binaries}:$PATH RAY_USAGE_STATS_ENABLED=0
HEAD=$(getent hosts $(hostname) | cut -d' ' -f1)
PORT=$((30000 + SLURM_JOB_ID % 10000))
srun --cpu-bind=none ray symmetric-run --address $HEAD:$PORT --min-nodes 2 --num-cpus 2 -- \\
  python {folder}/squares.py $HEAD:$PORT {folder}/$1.value
touch {folder}/$1
"""
