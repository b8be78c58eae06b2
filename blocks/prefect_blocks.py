"""The blocks that Prefect saves. Their fields and behaviour are in modules that need no Prefect."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field

from slurm_ray_flow.blocks import local_machine, oar_cluster, slurm_cluster, ssh_server
from slurm_ray_flow.blocks.ssh import block as ssh_block


class SshConnection(ssh_block.SshConnection, Block):  # type: ignore[misc]  # Prefect has these names optional
    """How to reach a host by SSH. What is left empty is as OpenSSH's configuration (~/.ssh/config) has it.

    Attributes:
        host: A Host of ~/.ssh/config, a name or an address.
        user: The user's name there.
        port: The port of its SSH server.
        key_file: The private key to log in with.
        password: The password, if it is not given in the environment as <NAME>_PASSWORD.
        proxy_jump: Servers to pass on the way, "user@host:port" each.
        known_hosts: The file of known host keys.
        config_file: Another file than ~/.ssh/config.
        connect_timeout: Seconds for one try to connect.
        reconnect_within: Seconds for which a lost connection is tried again.

    Example:
        Load a stored connection and use it:
        ```python
        from slurm_ray_flow import SshConnection

        connection = SshConnection.load("BLOCK_NAME")
        ```
    """


class LocalMachine(local_machine.LocalMachine, Block):  # type: ignore[misc]  # Prefect has these names optional
    """This machine: functions run beside the program that calls them, in processes of their own.

    Attributes:
        root: The folder for everything that runs leave. By default ~/.slurm-ray-flow, or $SRF_HOME.

    Example:
        Load a stored machine and use it:
        ```python
        from slurm_ray_flow import LocalMachine, slurm_ray_flow

        machine = LocalMachine.load("BLOCK_NAME")


        @slurm_ray_flow(cluster=machine)
        def answer():
            return 42
        ```
    """


class SshServer(ssh_server.SshServer, Block):  # type: ignore[misc]  # Prefect has these names optional
    """A server that is reached by SSH and has no scheduler: one run at a time holds it, or a few share it.

    Attributes:
        connection: How to log in.
        root: The folder there for everything that runs leave.
        python: Which Python runs functions there.
        wheels: Where packages come from.
        lock_path: The file whose lock is exclusive use of the server; empty for a server without a lock.
        slots: How many runs may share the server.
        gpus: How many GPUs runs may use; empty for all there are.
        retention_days: How many days what nobody uses stays.

    Example:
        Load a stored server and use it:
        ```python
        from slurm_ray_flow import SshServer, slurm_ray_flow

        desi = SshServer.load("BLOCK_NAME")


        @slurm_ray_flow(cluster=desi)
        def answer():
            return 42
        ```
    """

    connection: SshConnection = Field(title="Connection", description="How to log in.")


class SlurmCluster(slurm_cluster.SlurmCluster, Block):  # type: ignore[misc]  # Prefect has these names optional
    """A Slurm cluster.

    Attributes:
        connection: How to log in on its login node; empty on the login node itself.
        account: What is charged.
        partition: Where jobs run.
        qos: The quality of service.
        constraint: Features that nodes must have.
        reservation: Nodes that are kept for you.
        exclude: Nodes that are left out.
        modules: What `module load` loads in each job.
        setup: Lines of shell that each job begins with.
        sbatch_options: More options of sbatch.
        root: The folder for everything that runs leave, which all nodes see.
        scratch: The folder on each node for what a run needs there for a while.
        python: Which Python runs functions.
        wheels: Where packages come from.
        container: The image that functions run in.
        container_options: More options of `apptainer exec`.
        container_python: The image's Python.
        retention_days: How long what nobody uses stays.

    Example:
        Load a stored cluster and use it:
        ```python
        from slurm_ray_flow import SlurmCluster, slurm_ray_flow

        curnagl = SlurmCluster.load("BLOCK_NAME")


        @slurm_ray_flow(cluster=curnagl, nodes=2)
        def answer():
            return 42
        ```
    """

    connection: SshConnection | None = Field(
        default=None,
        title="Connection",
        description="How to log in on its login node; none where that is this machine.",
    )


class OarCluster(oar_cluster.OarCluster, Block):  # type: ignore[misc]  # Prefect has these names optional
    """An OAR cluster.

    Attributes:
        connection: How to log in on its frontend; empty on the frontend itself.
        queue: Where jobs go.
        project: What is charged.
        properties: What nodes must have.
        types: Types of each job.
        oarsub_options: More options of oarsub.
        modules: What `module load` loads in each job.
        setup: Lines of shell that each job begins with.
        root: The folder for everything that runs leave, which all nodes see.
        scratch: The folder on each node for what a run needs there for a while.
        python: Which Python runs functions.
        wheels: Where packages come from.
        container: The image that functions run in.
        container_options: More options of `apptainer exec`.
        container_python: The image's Python.
        retention_days: How long what nobody uses stays.

    Example:
        Load a stored cluster and use it:
        ```python
        from slurm_ray_flow import OarCluster, slurm_ray_flow

        gricad = OarCluster.load("BLOCK_NAME")


        @slurm_ray_flow(cluster=gricad, nodes=2)
        def answer():
            return 42
        ```
    """

    connection: SshConnection | None = Field(
        default=None,
        title="Connection",
        description="How to log in on its frontend; none where that is this machine.",
    )
