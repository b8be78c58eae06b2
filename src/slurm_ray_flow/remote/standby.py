"""The driver that is booted ahead of time, so that the next call need not wait for its imports."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote.calls import DriverProcess
from slurm_ray_flow.remote.ray_nodes import RayNodes
from slurm_ray_flow.remote.tenure import Tenure


class Standby:
    """At most one driver that waits for orders.

    Args:
        spec: the allocation's spec.json.
        tenure: what the allocation holds of a server under a lock.
    """

    def __init__(self, spec: Dict[str, Any], tenure: Optional[Tenure]) -> None:
        self._spec, self._tenure = spec, tenure
        self._prepared = False
        self.driver: Optional[DriverProcess] = None

    @property
    def unprepared(self) -> bool:
        """Whether there is a driver that has had no order yet."""
        return self.driver is not None and not self._prepared

    @property
    def pids(self) -> List[int]:
        return [self.driver.pid] if self.driver else []

    def boot(self, ray: Optional[RayNodes]) -> None:
        """Start a driver, if none is there."""
        if self.driver is None:
            environment = {**os.environ, **(ray.variables if ray else {})}
            self.driver = DriverProcess(self._spec, environment, ray is not None)
            if self._tenure:
                self._tenure.limit(self.driver.pid)
            self._prepared = False

    def prepare(self, like: str, place: Dict[str, Any]) -> None:
        """Ready the driver for a call like that of the run in the folder `like`."""
        assert self.driver is not None
        self._prepared = True
        self.driver.order(prepare=like, **place)

    def take(self, ray: Optional[RayNodes]) -> DriverProcess:
        """Give the driver away; one that was killed while it waited is replaced."""
        if self.driver is not None and self.driver.code is not None and self.driver.report() is None:
            self.driver.close()
            self.driver = None
        self.boot(ray)
        assert self.driver is not None
        driver, self.driver = self.driver, None
        return driver
