"""The results of a connectivity check, as values, as one table and as JSON. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from controlled_rollout.checks.advice import stage_cells
from controlled_rollout.checks.destinations import WORKER
from controlled_rollout.checks.probe import Probe
from controlled_rollout.text_table import text_table

__all__ = ["CheckResult", "as_json", "failures", "results_table"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: What was checked.
        works: Whether it works.
        message: The address and the answer, or what went wrong.
        origin: From where: `worker`, this process, or `pods`, a pod with a version's network identity.
        needed: Whether a rollout fails without it.
        advice: What to open or to change, if it does not work.
        probe: What each stage has shown, for a server.
    """

    name: str
    works: bool
    message: str
    origin: str = WORKER
    needed: bool = True
    advice: str = ""
    probe: Probe | None = None

    @property
    def outcome(self) -> str:
        """`works`, `FAILS`, or `closed` for what does not work and is not needed."""
        return "works" if self.works else "FAILS" if self.needed else "closed"


def failures(results: Sequence[CheckResult]) -> list[CheckResult]:
    """Return the results that a rollout would fail for."""
    return [result for result in results if result.needed and not result.works]


def results_table(results: Sequence[CheckResult]) -> str:
    """Return the results as one text table, a line per check, with what to open for each that does not work."""
    head = ("check", "from", "result", "DNS", "TCP", "TLS", "HTTP", "")
    rows = [
        (result.name, result.origin, result.outcome, *stage_cells(result.probe), _last_cell(result))
        for result in results
    ]
    return text_table([head, *rows])


def _last_cell(result: CheckResult) -> str:
    """Return a result's message, and what to do about it."""
    return f"{result.message}. To do: {result.advice}" if result.advice else result.message


def as_json(results: Sequence[CheckResult]) -> list[dict[str, Any]]:
    """Return the results as values for JSON."""
    return [{**asdict(result), "outcome": result.outcome} for result in results]
