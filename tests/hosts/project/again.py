"""A function as Prefect finds it when it starts a flow run again: on the cluster that `AGAIN_ON` names."""

import os

from held import wait

again = wait.with_options(cluster=os.environ["AGAIN_ON"])
