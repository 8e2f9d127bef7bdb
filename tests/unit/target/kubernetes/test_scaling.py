"""The number of a Deployment's pods that a step asks for: at least so many, whoever else sets it meanwhile."""

from typing import Any, cast

import pytest

from controlled_rollout.autoscaling import Floor
from controlled_rollout.autoscaling.floor import FLOOR_S
from controlled_rollout.cluster.api import Api
from controlled_rollout.target.kubernetes.annotations import FLOOR
from controlled_rollout.target.kubernetes.scaling import SCALE_MANAGER, floor_of, keep_at_least
from controlled_rollout.workspace import Workspace

WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})
NOW = 1_800_000_000.0


class OneDeployment:
    """An API server with one Deployment, which others scale meanwhile.

    Attributes:
        replicas: Its number of pods.
        meanwhile: The numbers that others set, each of them just before one of our changes arrives.
    """

    def __init__(self, replicas: int, floor: Floor | None = None, meanwhile: tuple[int, ...] = ()) -> None:
        self.replicas = replicas
        self.annotations = {FLOOR: str(floor)} if floor else {}
        self.meanwhile = list(meanwhile)
        self.version = 1

    async def get(self, path: str) -> dict[str, Any]:
        metadata = {"resourceVersion": str(self.version), "annotations": dict(self.annotations)}
        return {"metadata": metadata, "spec": {"replicas": self.replicas}}

    async def merge_if_unchanged(
        self, path: str, current: dict[str, Any], body: dict[str, Any], *, manager: str
    ) -> dict[str, Any] | None:
        assert manager == SCALE_MANAGER
        if self.meanwhile:
            self.replicas = self.meanwhile.pop(0)
            self.version += 1
        if current["metadata"]["resourceVersion"] != str(self.version):
            return None
        return self._take(body)

    async def merge_patch(self, path: str, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        assert manager == SCALE_MANAGER
        return self._take(body)

    def _take(self, body: dict[str, Any]) -> dict[str, Any]:
        self.replicas = body.get("spec", {}).get("replicas", self.replicas)
        self.annotations |= body["metadata"]["annotations"]
        return body


@pytest.mark.parametrize(
    ("replicas", "meanwhile", "then"),
    [(2, (), 4), (4, (), 4), (7, (), 7), (2, (6,), 6), (7, (3,), 4), (2, (3, 2, 9), 9), (2, tuple(range(5, 25)), 14)],
)
async def test_version_keeps_what_it_has_more_and_gets_what_it_lacks(
    replicas: int, meanwhile: tuple[int, ...], then: int
) -> None:
    api = OneDeployment(replicas, meanwhile=meanwhile)
    await keep_at_least(cast(Api, api), WORKSPACE, "digits", "one", 4, now=NOW)

    assert api.replicas == then
    assert floor_of(await api.get("")) == Floor(4, NOW + FLOOR_S)


@pytest.mark.parametrize(("floor", "then"), [(Floor(6, NOW + 60), 6), (Floor(6, NOW - 1), 4), (Floor(2, NOW + 60), 4)])
async def test_higher_floor_of_a_moment_ago_holds(floor: Floor, then: int) -> None:
    api = OneDeployment(8, floor)
    await keep_at_least(cast(Api, api), WORKSPACE, "digits", "one", 4, now=NOW)

    assert floor_of(await api.get("")) == Floor(then, NOW + FLOOR_S)
