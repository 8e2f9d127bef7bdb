"""A real one-node Kubernetes for the tests: real containers, a gateway, a registry and a telemetry store, no Docker.

`python -m tests.cluster.lab up` brings it up; `down` removes everything of it except the cache.
"""

from .cluster import Lab
from .errors import LabError

__all__ = ["Lab", "LabError"]
