"""The end of a pod's log is read in bounded size, however long the lines are that a model prints."""

from typing import Any, cast

import pytest

from controlled_rollout.cluster.api import Api
from controlled_rollout.target.kubernetes.pod_logs import MOST_BYTES, version_logs
from controlled_rollout.workspace import Workspace

WORKSPACE = Workspace.from_settings({"target": "kubernetes", "namespace": "ml", "gateway": "ml/gateway"})


class LoggingApi:
    """An API server with one pod, whose log it cuts as a kubelet does: the last lines, and of these the first bytes."""

    def __init__(self, log: bytes) -> None:
        self.lines = log.splitlines(keepends=True)
        self.answered: list[int] = []

    async def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        return [{"metadata": {"name": "v1a-0", "creationTimestamp": "2026-03-02T03:00:00Z"}}]

    async def request(self, method: str, path: str, *, query: dict[str, str], accept: str) -> bytes:
        log = b"".join(self.lines[-int(query["tailLines"]) :])[: int(query["limitBytes"])]
        self.answered.append(len(log))
        return log


@pytest.mark.parametrize(
    ("log", "last"),
    [
        (b"".join(b"line %d\n" % number for number in range(500)), "line 499"),
        (b"".join(b"%d " % number * 40_000 + b"last\n" for number in range(500)), "last"),
    ],
    ids=["short lines", "long lines"],
)
async def test_the_newest_lines_are_read_in_bounded_size(log: bytes, last: str) -> None:
    api = LoggingApi(log)
    text = await version_logs(cast("Api", api), WORKSPACE, "digits", "v1a", 200)
    assert text.endswith(last)
    assert max(api.answered) <= MOST_BYTES
    assert len(text.splitlines()) == (200 if last == "line 499" else 3)
