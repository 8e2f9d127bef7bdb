"""Two versions whose requests the collector's own code has shipped into a folder, and labels of these requests."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from controlled_rollout.labels import LabelMetric, LabelRow, Labels, LabelSource
from controlled_rollout.labels.judgement import LabelLook, judge_labels
from controlled_rollout.workspace import Workspace
from controlled_rollout_collector.shipping import SpoolShipper
from controlled_rollout_collector.storage import FolderStorage
from tests.unit.collector.spools import SpoolWriter, make_spool

T0: Final = datetime(2026, 3, 1, tzinfo=UTC)
UNTIL: Final = T0 + timedelta(hours=10)
S: Final = timedelta(seconds=1)
HOUR: Final = timedelta(hours=1)
ACCURACY: Final = Labels(metrics={"accuracy": LabelMetric()})


@dataclass
class Rows:
    """A source of labels that are in memory.

    Attributes:
        rows: All labels that have ever arrived, or will.
    """

    rows: Sequence[LabelRow]
    description: str = "labels in memory"

    def read(self, *, since: datetime, until: datetime, limit: int) -> Iterator[LabelRow]:
        return iter([row for row in self.rows if since <= row.arrived < until])


@dataclass
class LabelledRollout:
    """A workspace whose storage has what two versions have collected from T0 to UNTIL.

    Attributes:
        workspace: The workspace.
        truth: By correlation id what was right.
    """

    workspace: Workspace
    truth: dict[str, int] = field(default_factory=dict)

    @property
    def storage(self) -> Path:
        return Path(self.workspace.storage_place)

    def collect(
        self, version: str, requests: Iterable[tuple[str, datetime, Any]], *, name: str = "one", **head: Any
    ) -> None:
        """Let a version answer requests, each with its id, its arrival and its answer, and ship them."""
        spool = make_spool(self.workspace.root / "spools" / version, replica=f"{version}-{name}", version=version)
        writer = SpoolWriter(spool)
        for id_, at, answer in requests:
            asked, answered = b'{"data": [[1]]}', json.dumps(answer).encode()
            kind = "application/json"
            writer.append(
                {
                    "kind": "exchange", "id": id_, "correlation": f"c-{id_}", "time": at.timestamp(),
                    "duration_ms": 1.0, "status": 200, "method": "POST", "path": "/score",
                    "request": {"type": kind, "size": len(asked), "kept": len(asked)},
                    "response": {"type": kind, "size": len(answered), "kept": len(answered)},
                } | head,
                asked,
                answered,
            )  # fmt: skip
        (spool / "ended").touch()
        writer.end()
        SpoolShipper(spool, FolderStorage(self.storage), clock=UNTIL.timestamp).ship()

    def look(self, source: LabelSource, labels: Labels = ACCURACY, **changes: Any) -> LabelLook:
        """Judge v2a against v1a, long after the last label."""
        arguments: dict[str, Any] = {
            "control": "v1a", "treatment": "v2a", "since": T0, "until": UNTIL, "now": UNTIL + timedelta(days=3),
        }  # fmt: skip
        return judge_labels(self.workspace, "digits", labels=labels, source=source, **(arguments | changes))


def answered_requests(rollout: LabelledRollout, *, wrong: dict[str, float], each: int = 400) -> list[LabelRow]:
    """Let both versions answer requests, wrong ones as often as given; return labels that arrive over two days."""
    draw = random.Random(1)
    rows = []
    for version, rate in wrong.items():
        requests = []
        for number in range(each):
            id_, at = f"{version}-{number}", T0 + draw.random() * (UNTIL - T0)
            right = draw.randrange(5)
            answer = right if draw.random() >= rate else right + 1
            requests.append((id_, at, [answer]))
            rollout.truth[f"c-{id_}"] = right
            rows.append(LabelRow(f"c-{id_}", right, at + draw.random() * timedelta(days=2)))
        rollout.collect(version, sorted(requests, key=lambda one: one[1]))
    return sorted(rows, key=lambda row: row.arrived)
