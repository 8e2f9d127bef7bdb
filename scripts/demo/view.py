"""The live view of steps, traffic, requests and claims: redrawn on a terminal, printed as lines elsewhere."""

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
from scripts.demo.load_report import LoadReport
from scripts.demo.result import evidence_text, format_e_value

__all__ = ["Preparation", "Snapshot", "StepRow", "View", "changed_lines", "draw", "folded"]

REFRESH_PER_S: Final = 4
REPORT_EVERY_S: Final = 5.0
# The fewest columns in which the steps and the traffic have room beside each other.
SIDE_BY_SIDE: Final = 130
# What the panel's border and the heading of the steps take of the console.
PANEL_COLUMNS: Final = 4
PANEL_LINES: Final = 2
STEPS_HEADING_LINES: Final = 2
MIN_STEP_ROWS: Final = 3
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
    """A part of the set-up before the run begins.

    Attributes:
        name: Its name for people.
        seconds: How long it took; None while it is not done.
    """

    name: str
    seconds: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Everything that the view shows at one moment.

    Attributes:
        elapsed_s: Seconds since the demo began.
        title: The title of the view.
        preparations: The set-up before the run.
        tasks: The tasks of the run, each after those that it waits for.
        endpoint: The endpoint's newest revision.
        report: What the load generator has counted.
        look: The newest look at the evidence.
        notice: A fault that the demo injects right now, in words; empty for none.
        anew: That it was rolled out anew, and why; empty if it was not.
    """

    elapsed_s: float
    title: str
    preparations: tuple[Preparation, ...] = ()
    tasks: tuple[TaskState, ...] = ()
    endpoint: Endpoint | None = None
    report: LoadReport | None = None
    look: Decision | None = None
    notice: str = ""
    anew: str = ""


@dataclass(frozen=True)
class StepRow:
    """A row of the table of steps.

    Attributes:
        sign: `✓` for a step that is done, `·` for one that has not begun, another sign for all others.
        name: The step.
        state: Its state or how long it took.
        style: Its style for rich.
    """

    sign: str
    name: str
    state: str
    style: str


def draw(snapshot: Snapshot, console: Console) -> RenderableType:
    """Return the view in the size of a console.

    A wide console has the steps on the left. On a narrow one the gate and the traffic come first, and steps that are
    done or have not begun are folded into one row each as far as the height requires it.
    """
    is_wide = console.width >= SIDE_BY_SIDE
    traffic, gate = _traffic(snapshot, is_wide=is_wide), _gate(snapshot.look)
    notice = [Text(line, style="bold magenta") for line in (snapshot.notice, snapshot.anew) if line]
    if is_wide:
        columns = Table.grid(padding=(0, 2))
        columns.add_row(_steps(_step_rows(snapshot)), Group(traffic, "", gate))
        content = Group(columns, *notice)
    else:
        above = Group(gate, traffic, *notice)
        inner = console.options.update(width=console.width - PANEL_COLUMNS)
        used = len(console.render_lines(above, inner)) + PANEL_LINES + STEPS_HEADING_LINES
        content = Group(above, _steps(folded(_step_rows(snapshot), max(console.height - used, MIN_STEP_ROWS))))
    return Panel(content, title=f"{snapshot.title} · {snapshot.elapsed_s:.0f} s", title_align="left")


def _step_rows(snapshot: Snapshot) -> list[StepRow]:
    rows = [
        StepRow("●", preparation.name, "", "yellow")
        if preparation.seconds is None
        else StepRow("✓", preparation.name, f"{preparation.seconds:.1f} s", "green")
        for preparation in snapshot.preparations
    ]
    for task in snapshot.tasks:
        state = task.state or ""
        name = task.task.removeprefix("rollout.")
        rows.append(StepRow(SIGNS.get(state, "·"), name, _task_state(task), STYLES.get(state, "dim")))
    return rows


def folded(rows: Sequence[StepRow], max_rows: int) -> list[StepRow]:
    """Return at most `max_rows` rows if possible: first steps that are done are folded, then those that have not begun.

    Args:
        rows: The steps, in their order.
        max_rows: How many rows there is room for.
    """
    done = next((index for index, row in enumerate(rows) if row.sign != "✓"), len(rows))
    begun = next((index for index in range(len(rows), done, -1) if rows[index - 1].sign != "·"), done)
    middle, to_come = list(rows[done:begun]), list(rows[begun:])
    fold_done = min(done, len(rows) - max_rows + 1) if len(rows) > max_rows else 0
    first = [StepRow("✓", f"{fold_done} steps", "done", "green")] if fold_done > 1 else list(rows[:fold_done])
    shown = [*first, *rows[fold_done:done], *middle]
    room = max_rows - len(shown)
    if len(to_come) > room:
        kept = max(room - 1, 0)
        to_come = [*to_come[:kept], StepRow("·", f"{len(to_come) - kept} steps", "to come", "dim")]
    return shown + to_come


def _steps(rows: Sequence[StepRow]) -> Table:
    table = Table("step", "state", box=None, padding=(0, 1), title="steps", title_justify="left", header_style="dim")
    for row in rows:
        table.add_row(Text(f"{row.sign} {row.name}", style=row.style), row.state)
    return table


def _task_state(task: TaskState) -> str:
    if task.state == "success" and task.started and task.ended:
        return f"{(task.ended - task.started).total_seconds():.1f} s"
    state = "waits (deferred)" if task.state == "deferred" else (task.state or "").replace("_", " ")
    return state + (f", try {task.attempt}" if task.attempt > 1 else "")


def _traffic(snapshot: Snapshot, *, is_wide: bool) -> Table:
    """Return the table of versions; a narrow one has no column for the set share and the median latency."""
    table = Table(
        "version", "role", "set", "effective", "observed", "requests", "failed", "p50", "p95",
        box=None, padding=(0, 1), title="traffic (callers' view, last 5 s)", title_justify="left", header_style="dim",
    )  # fmt: skip
    for column in table.columns[2:]:
        column.justify = "right"
    # Where there is too little room, only the versions' names are cut.
    table.columns[0].overflow = "ellipsis"
    for column in table.columns[1:]:
        column.no_wrap = True
    endpoint, report = snapshot.endpoint, snapshot.report
    effective = endpoint.effective_traffic() if endpoint else {}
    observed = report.recent_split() if report else {}
    reports = report.versions if report else {}
    for name in [*effective, *(name for name in reports if name not in effective)]:
        version = endpoint.versions.get(name) if endpoint else None
        counts = reports.get(name)
        # Without an endpoint its versions are not known yet.
        missing_role = "gone" if endpoint else ""
        failed = counts.failed if counts else 0
        table.add_row(
            name,
            version.type.value.lower() if version else missing_role,
            f"{version.traffic_percentile:g} %" if version else "",
            f"{effective[name]:g} %" if name in effective else "",
            f"{observed.get(name, 0):.1f} %" if observed else "",
            f"{counts.requests:,}" if counts else "0",
            Text(f"{failed:,}", style="red" if failed else "green"),
            _milliseconds(counts.recent_p50_ms if counts else None),
            _milliseconds(counts.recent_p95_ms if counts else None),
        )
    if not is_wide:
        table.columns = [column for column in table.columns if column.header not in ("set", "p50")]
    return table


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms"


def _gate(look: Decision | None) -> Group:
    if look is None:
        return Group("gate: no look yet", "")
    table = Table("claim", "e-value", "of", "still needed", box=None, padding=(0, 1), header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    verdict = look.verdict or {}
    outcome = look.outcome or ""
    title = Text.assemble(
        "gate: ",
        (outcome.replace("_", " "), OUTCOMES.get(outcome, "yellow")),
        f" · treatment {verdict.get('treatment_requests', 0):,} requests, "
        f"control {verdict.get('control_requests', 0):,}",
    )
    claims = verdict.get("claims", [])
    for claim in claims:
        table.add_row(
            claim["name"], format_e_value(claim["e_value"]), format_e_value(claim["threshold"]), _needed(claim)
        )
    return Group(title, table if claims else f" {look.reason}", _other_reason(look).removeprefix("; "))


def _needed(claim: dict[str, Any]) -> str:
    if claim["kind"] != "pass":
        return "alarm" if claim["reached"] else ""
    if claim["reached"]:
        return "none"
    return "requests not known" if claim["needed_requests"] is None else f"{claim['needed_requests']:,} requests"


@dataclass
class PrintedState:
    """The state that has been printed so far, so that only changes are printed."""

    ready: set[str] = field(default_factory=set)
    tasks: dict[str, str] = field(default_factory=dict)
    traffic: dict[str, float] = field(default_factory=dict)
    look: str = ""
    notice: str = ""
    anew: str = ""
    reported_s: float = -REPORT_EVERY_S


def changed_lines(snapshot: Snapshot, printed: PrintedState) -> list[str]:
    """Return a line for each change since the state in `printed`, and update `printed`."""
    lines = []
    for preparation in snapshot.preparations:
        if preparation.seconds is not None and preparation.name not in printed.ready:
            printed.ready.add(preparation.name)
            lines.append(f"{preparation.name}: ready after {preparation.seconds:.1f} s")
    if snapshot.anew != printed.anew:
        printed.anew, printed.tasks = snapshot.anew, {}
        lines.append(f"demo: {snapshot.anew}")
    for task in snapshot.tasks:
        state = f"{task.state} {task.attempt}"
        if task.state not in (None, "scheduled", "queued") and printed.tasks.get(task.task) != state:
            printed.tasks[task.task] = state
            lines.append(f"{task.task}: " + ("done in " if task.state == "success" else "") + _task_state(task))
    if snapshot.endpoint and (traffic := snapshot.endpoint.effective_traffic()) != printed.traffic:
        printed.traffic = traffic
        lines.append("traffic: " + ", ".join(f"{name} {share:g} %" for name, share in traffic.items()))
    if snapshot.look and (look := _look_line(snapshot.look)) != printed.look:
        printed.look = look
        lines.append(look)
    if snapshot.notice.split(":")[0] != printed.notice:
        printed.notice = snapshot.notice.split(":")[0]
        lines.append(f"demo: {snapshot.notice}" if snapshot.notice else "demo: the telemetry store runs again")
    if snapshot.report and snapshot.report.requests and snapshot.elapsed_s - printed.reported_s >= REPORT_EVERY_S:
        printed.reported_s = snapshot.elapsed_s
        lines.append(_counts(snapshot.report))
    return lines


def _look_line(look: Decision) -> str:
    claims = (look.verdict or {}).get("claims", [])
    outcome = (look.outcome or "").replace("_", " ")
    if not claims:
        return f"gate: {outcome}: {look.reason}"
    texts = []
    for claim in claims:
        needed = ""
        if claim["kind"] == "pass" and not claim["reached"]:
            text = _needed(claim)
            needed = f" ({text})" if claim["needed_requests"] is None else f" ({text} needed)"
        texts.append(f"{claim['name']} {evidence_text(claim)}{needed}")
    return f"gate: {outcome}: " + ", ".join(texts) + _other_reason(look)


def _other_reason(look: Decision) -> str:
    """Return why a gate does not pass although all of its claims are reached; nothing if that is not so."""
    claims = (look.verdict or {}).get("claims", [])
    is_reached = all(claim["reached"] for claim in claims if claim["kind"] == "pass")
    return f"; {look.reason}" if claims and is_reached and look.outcome == "not_enough_evidence" else ""


def _counts(report: LoadReport) -> str:
    parts = [
        f"{name} {version.requests:,} ({version.failed:,} failed, p95 {_milliseconds(version.recent_p95_ms) or '-'})"
        for name, version in report.versions.items()
    ]
    return "requests: " + "; ".join(parts)


class View:
    """Shows snapshots: redrawn in place on a terminal, as lines of changes elsewhere.

    Args:
        console: Where they are shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, refresh_per_second=REFRESH_PER_S, transient=False) if console.is_terminal else None
        )
        self._printed = PrintedState()

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
            self._live.update(draw(snapshot, self._console))
        else:
            self.print_lines(changed_lines(snapshot, self._printed), snapshot.elapsed_s)

    def print_lines(self, lines: Sequence[str], elapsed_s: float) -> None:
        """Print lines, each with the seconds since the demo began."""
        for line in lines:
            self._console.print(f"[{elapsed_s:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)
