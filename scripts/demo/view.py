"""The live view: steps, traffic, requests, the gate's numbers. On a terminal it is redrawn, elsewhere it is lines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.airflow import TaskState
from scripts.demo.outcome import number
from scripts.demo.report import LoadReport

__all__ = ["Preparation", "Snapshot", "View", "changes", "draw"]

REFRESH_PER_S: Final = 4
REPORT_EVERY_S: Final = 5.0
# The fewest columns in which the steps and the traffic have room beside each other.
SIDE_BY_SIDE: Final = 130
STYLES: Final = {
    "success": "green",
    "running": "yellow",
    "deferred": "yellow",
    "failed": "red",
    "upstream_failed": "red",
    "up_for_retry": "magenta",
    "skipped": "dim",
}
SIGNS: Final = {"success": "✓", "failed": "✗", "upstream_failed": "✗", "running": "●", "deferred": "●", "skipped": "–"}
OUTCOMES: Final = {"pass": "green", "fail": "bold red", "cannot_see": "bold magenta", "split_is_wrong": "bold magenta"}


@dataclass(frozen=True)
class Preparation:
    """Something that has to be there before the run begins.

    Attributes:
        name: What it is.
        seconds: How long it took; None while it is under way.
    """

    name: str
    seconds: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Everything that is shown, at one moment.

    Attributes:
        elapsed_s: Since the demo began.
        title: What is being shown.
        preparations: What came before the run.
        tasks: The run's tasks, in their order.
        endpoint: The endpoint's newest revision.
        report: What callers see.
        look: The newest look at the evidence.
        notice: What the demo itself does to the scene right now.
    """

    elapsed_s: float
    title: str
    preparations: tuple[Preparation, ...] = ()
    tasks: tuple[TaskState, ...] = ()
    endpoint: Endpoint | None = None
    report: LoadReport | None = None
    look: Decision | None = None
    notice: str = ""


def draw(snapshot: Snapshot, *, width: int) -> RenderableType:
    """Return the view as rich draws it on a terminal of some width: side by side, or below each other."""
    right = Group(_traffic(snapshot), _gate(snapshot.look))
    parts: list[RenderableType] = [_steps(snapshot), right]
    if width >= SIDE_BY_SIDE:
        both = Table.grid(padding=(0, 2))
        both.add_row(*parts)
        parts = [both]
    if snapshot.notice:
        parts.append(Text(snapshot.notice, style="bold magenta"))
    return Panel(Group(*parts), title=f"{snapshot.title} · {snapshot.elapsed_s:.0f} s", title_align="left")


def _steps(snapshot: Snapshot) -> Table:
    table = Table("step", "state", box=None, padding=(0, 1), title="steps", title_justify="left", header_style="dim")
    for preparation in snapshot.preparations:
        if preparation.seconds is None:
            table.add_row(Text(f"● {preparation.name}", style="yellow"), "")
        else:
            table.add_row(Text(f"✓ {preparation.name}", style="green"), f"{preparation.seconds:.1f} s")
    for task in snapshot.tasks:
        style = STYLES.get(task.state or "", "dim")
        name = task.task.removeprefix("rollout.")
        table.add_row(Text(f"{SIGNS.get(task.state or '', '·')} {name}", style=style), _task_state(task))
    return table


def _task_state(task: TaskState) -> str:
    if task.state == "success" and task.started and task.ended:
        return f"{(task.ended - task.started).total_seconds():.1f} s"
    state = "waits (deferred)" if task.state == "deferred" else (task.state or "").replace("_", " ")
    return state + (f", try {task.attempt}" if task.attempt > 1 else "")


def _traffic(snapshot: Snapshot) -> Table:
    table = Table(
        "version", "role", "set", "effective", "observed", "requests", "failed", "p50", "p95",
        box=None, padding=(0, 1), title="traffic (callers' view, last 5 s)", title_justify="left", header_style="dim",
    )  # fmt: skip
    for column in table.columns[2:]:
        column.justify = "right"
    endpoint, report = snapshot.endpoint, snapshot.report
    effective = endpoint.effective_traffic() if endpoint else {}
    observed = report.recent_split() if report else {}
    seen = report.versions if report else {}
    for name in [*effective, *(name for name in seen if name not in effective)]:
        version = endpoint.versions.get(name) if endpoint else None
        counts = seen.get(name)
        role = version.type.value.lower() if version else "gone"
        failed = counts.failed if counts else 0
        table.add_row(
            name,
            role,
            f"{version.traffic_percentile:g} %" if version else "",
            f"{effective[name]:g} %" if name in effective else "",
            f"{observed.get(name, 0):.1f} %" if observed else "",
            f"{counts.requests:,}" if counts else "0",
            Text(f"{failed:,}", style="red" if failed else "green"),
            _milliseconds(counts.recent_p50_ms if counts else None),
            _milliseconds(counts.recent_p95_ms if counts else None),
        )
    return table


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"


def _gate(look: Decision | None) -> Group:
    if look is None:
        return Group("\ngate: has not looked yet")
    table = Table("claim", "e-value", "of", "still needed", box=None, padding=(0, 1), header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    verdict = look.verdict or {}
    outcome = look.outcome or ""
    title = Text.assemble(
        "\ngate: ",
        (outcome.replace("_", " "), OUTCOMES.get(outcome, "yellow")),
        f" · treatment {verdict.get('treatment_requests', 0):,} requests, "
        f"control {verdict.get('control_requests', 0):,}",
    )
    claims = verdict.get("claims", [])
    for claim in claims:
        table.add_row(claim["name"], number(claim["e_value"]), number(claim["threshold"]), _needed(claim))
    return Group(title, table if claims else f" {look.why}")


def _needed(claim: dict[str, Any]) -> str:
    if claim["kind"] != "pass":
        return "alarm" if claim["reached"] else ""
    if claim["reached"]:
        return "none"
    return "requests not known" if claim["needed_requests"] is None else f"{claim['needed_requests']:,} requests"


@dataclass
class _Told:
    """What the lines have said so far."""

    ready: set[str] = field(default_factory=set)
    tasks: dict[str, str] = field(default_factory=dict)
    traffic: dict[str, float] = field(default_factory=dict)
    look: str = ""
    notice: str = ""
    reported_s: float = -REPORT_EVERY_S


def changes(snapshot: Snapshot, told: _Told) -> list[str]:
    """Return a line for each thing that has changed since the last call, and note it in `told`."""
    lines = []
    for preparation in snapshot.preparations:
        if preparation.seconds is not None and preparation.name not in told.ready:
            told.ready.add(preparation.name)
            lines.append(f"{preparation.name}: ready after {preparation.seconds:.1f} s")
    for task in snapshot.tasks:
        state = f"{task.state} {task.attempt}"
        if task.state not in (None, "scheduled", "queued") and told.tasks.get(task.task) != state:
            told.tasks[task.task] = state
            lines.append(f"{task.task}: " + ("done in " if task.state == "success" else "") + _task_state(task))
    if snapshot.endpoint and (traffic := snapshot.endpoint.effective_traffic()) != told.traffic:
        told.traffic = traffic
        lines.append("traffic: " + ", ".join(f"{name} {share:g} %" for name, share in traffic.items()))
    if snapshot.look and (look := _look_in_words(snapshot.look)) != told.look:
        told.look = look
        lines.append(look)
    if snapshot.notice.split(":")[0] != told.notice:
        told.notice = snapshot.notice.split(":")[0]
        lines.append(f"demo: {snapshot.notice}" if snapshot.notice else "demo: it is back")
    if snapshot.report and snapshot.report.requests and snapshot.elapsed_s - told.reported_s >= REPORT_EVERY_S:
        told.reported_s = snapshot.elapsed_s
        lines.append(_counts(snapshot.report))
    return lines


def _look_in_words(look: Decision) -> str:
    claims = (look.verdict or {}).get("claims", [])
    outcome = (look.outcome or "").replace("_", " ")
    if not claims:
        return f"gate: {outcome}: {look.why}"
    words = []
    for claim in claims:
        needed = f" ({_needed(claim)} needed)" if claim["kind"] == "pass" and not claim["reached"] else ""
        words.append(f"{claim['name']} {number(claim['e_value'])} of {number(claim['threshold'])}{needed}")
    return f"gate: {outcome}: " + ", ".join(words)


def _counts(report: LoadReport) -> str:
    parts = [
        f"{name} {version.requests:,} ({version.failed:,} failed, p95 {_milliseconds(version.recent_p95_ms) or '-'})"
        for name, version in report.versions.items()
    ]
    return "requests: " + "; ".join(parts)


class View:
    """Shows snapshots: redrawn in place on a terminal, else as lines.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, refresh_per_second=REFRESH_PER_S, transient=False) if console.is_terminal else None
        )
        self._told = _Told()

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        if self._live:
            self._live.update(draw(snapshot, width=self._console.width))
        else:
            self.say(changes(snapshot, self._told), snapshot.elapsed_s)

    def say(self, lines: Sequence[str], elapsed_s: float) -> None:
        """Print lines with the time in front."""
        for line in lines:
            self._console.print(f"[{elapsed_s:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)
