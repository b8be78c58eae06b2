"""Every kind of cluster, for the contract: one entry each."""

from slurm_ray_flow import LocalMachine

KINDS = {
    "local-machine": lambda root: LocalMachine(root=root),
}
