"""Every event that may happen to a rollout, by name: `docs/what-can-decide.md` has a line for each."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from controlled_rollout import steps
from controlled_rollout.errors import AccessError, TargetUnavailableError
from tests.invariants.invariants import check, check_end, check_is_at_zero
from tests.invariants.simulated_airflow import FINISHED, Options, State, TaskInstance
from tests.invariants.world import World, image_of

__all__ = ["EVENTS", "OPTIONS", "VERSIONS", "Event", "apply", "settle"]

# The name of the event and its arguments: plain values, so that a sequence can be printed and repeated.
Event = tuple[Any, ...]
TICK_S: Final = 10.0
VERSIONS: Final = ("two", "three", "four")
OPTIONS: Final = (
    Options(),
    Options(steps=(50,)),
    Options(on_deadline="roll_back"),
    Options(on_deadline="ask"),
    Options(approval=True),
    Options(on_conflict="wait", keep_treatment=True),
    Options(steps=(25, 100), pass_every_step=True),
    Options(more=(("unseen_timeout", "60 s"),)),
)


# Events after which a task or a look may be late once.
DELAYS: Final = frozenset(
    {
        "scheduler_busy", "kill", "restart", "serving_lag", "starting", "down", "up", "quiet", "answers_lost",
        "record_conflicts", "record_answers_lost", "rows_back", "command_meanwhile", "answer", "endpoint_deleted",
        "restart_in_look", "airflow_gone", "task_for_people", "another_endpoint", "start_mapped_run",
    }
)  # fmt: skip
EVENTS: Final[dict[str, Callable[..., None]]] = {}


def event(happening: Callable[..., None]) -> Callable[..., None]:
    """Decorator: make a function an event that is known by its name."""
    EVENTS[happening.__name__] = happening
    return happening


@event
def tick(world: World, times: int = 1) -> None:
    """Let time pass, and tasks run, as usual."""
    for _ in range(times):
        for one in world.both:
            one.run_tasks()
        world.pass_time(TICK_S)
        for one in world.both:
            one.run_tasks()


@event
def scheduler_busy(world: World, seconds: float) -> None:
    """Time passes, and no task starts: Airflow's scheduler is late."""
    world.pass_time(seconds)


@event
def start_run(world: World, version: str, options: int) -> None:
    """Another DAG run begins."""
    if len(world.runs) < 3:
        world.start_run(version, OPTIONS[options])


@event
def start_mapped_run(world: World, version: str, options: int) -> None:
    """Another DAG run begins, whose group is mapped: two of its instances are given the same endpoint."""
    if len(world.runs) < 3:
        for index in range(2):
            world.start_run(version, OPTIONS[options], mapped=index)


@event
def another_endpoint(world: World, version: str, options: int) -> None:
    """The workspace has another endpoint, with a run of its own: what happens to one is nothing to the other."""
    if world.beside is None and world.neighbour is None:
        world.add_neighbour().start_run(version, OPTIONS[options])


@event
def elsewhere(world: World, name: str, *arguments: Any) -> None:
    """Something happens to the other endpoint."""
    if world.neighbour is not None:
        EVENTS[name](world.neighbour, *arguments)


@event
def errors(world: World, version: str, rate: float) -> None:
    """From now on so large a part of a version's answers are errors."""
    world.target.advance()
    world.traffic.error_rates[version] = rate
    if rate < 1:
        world.broken_since.pop(version, None)
    else:
        world.broken_since.setdefault(version, world.clock.seconds)


@event
def quiet(world: World, on: bool) -> None:
    """Callers stop calling, or begin again."""
    world.target.advance()
    world.traffic.quiet = on


@event
def target_away(world: World, seconds: float) -> None:
    """The target does not answer."""
    world.target.outage = TargetUnavailableError("the target does not answer")
    world.target.unavailable_until = world.clock.seconds + seconds


@event
def target_refuses(world: World, seconds: float) -> None:
    """The target answers 401 or 403."""
    world.target.outage = AccessError("the target refuses: 403")
    world.target.unavailable_until = world.clock.seconds + seconds


@event
def answers_lost(world: World, number: int) -> None:
    """The next changes are stored although their answers are lost."""
    world.target.lost_answers = number


@event
def serving_lag(world: World, seconds: float) -> None:
    """The router serves new revisions so late."""
    world.target.serving_lag_s = seconds


@event
def starting(world: World, seconds: float) -> None:
    """New versions take so long to become ready; `NEVER`: for ever."""
    world.target.starting_s = seconds


@event
def down(world: World, version: str) -> None:
    """A version's replicas die."""
    world.target.advance()
    if version in world.target.instances and world.target.instances[version].down_since is None:
        world.target.instances[version].down_since = world.clock.seconds
        world.disturbed.add(version)


@event
def up(world: World, version: str) -> None:
    """A version's replicas are back."""
    world.target.advance()
    if version in world.target.instances:
        world.target.instances[version].down_since = None


@event
def store_away(world: World, seconds: float) -> None:
    """The metric store does not answer."""
    world.store.unavailable_until = world.clock.seconds + seconds


@event
def store_nonsense(world: World, seconds: float) -> None:
    """The metric store answers nonsense."""
    world.store.nonsense_until = world.clock.seconds + seconds


@event
def rows_late(world: World, seconds: float) -> None:
    """Telemetry of the next requests arrives late, all at once."""
    world.target.advance()
    world.traffic.late_until = world.clock.seconds + seconds


@event
def rows_lost(world: World, version: str) -> None:
    """The metric store gets no more rows of a version."""
    world.target.advance()
    world.traffic.lost.add(version)
    world.forged = True


@event
def rows_back(world: World) -> None:
    """The metric store gets rows of all versions again."""
    world.target.advance()
    world.traffic.lost.clear()


@event
def rows_forged(world: World, version: str, requests: int, errors: int) -> None:
    """Somebody writes rows into the metric store."""
    world.traffic.add_rows(version, requests, errors)
    world.forged = True


@event
def rows_doubled(world: World, version: str) -> None:
    """The newest rows of a version are uploaded twice."""
    world.target.advance()
    newest = next((rows for rows in reversed(world.traffic.rows) if rows.version == version and rows.real), None)
    if newest is not None:
        world.traffic.add_rows(version, newest.requests, newest.errors)
        world.forged = True


@event
def record_away(world: World, seconds: float) -> None:
    """The record's storage cannot be reached."""
    world.record.unavailable_until = world.clock.seconds + seconds


@event
def record_full(world: World, seconds: float) -> None:
    """The record's disk is full: it can be read."""
    world.record.full_until = world.clock.seconds + seconds


@event
def record_hangs(world: World, seconds: float) -> None:
    """Work on the record's storage blocks."""
    world.record.hangs_until = world.clock.seconds + seconds


@event
def record_conflicts(world: World, number: int) -> None:
    """Other writers append to the record first."""
    world.record.conflicts = number


@event
def record_answers_lost(world: World, number: int) -> None:
    """Lines are appended although the writer is told that they were not."""
    world.record.lost_answers = number


@event
def record_part(world: World) -> None:
    """The record's open part is full: a new one begins."""
    world.record.open_part()


@event
def record_cut(world: World) -> None:
    """A crash in the middle of a write has left half a line in the record."""
    world.record.leave_half_a_line()


@event
def kill(world: World, calls: int) -> None:
    """The next task is killed after so many of its calls; it is retried."""
    world.kill_in = calls
    ready = world.runnable()
    if ready:
        ready[0].run.kills += 1
        world.run_task(ready[0])
    world.kill_in = None


@event
def restart(world: World) -> None:
    """All processes begin anew: workers, the triggerer, the API server."""
    world.restart()


@event
def restart_in_look(world: World, calls: int) -> None:
    """The triggerer is killed in the middle of a look, after so many of the looks' calls, and begins anew."""
    world.restart_in = calls
    world.pass_time(2 * TICK_S)
    world.restart_in = None


@event
def airflow_gone(world: World, seconds: float) -> None:
    """All processes of Airflow are killed, and begin anew after so long."""
    world.end_airflow(seconds)


@event
def agent_gone(world: World, seconds: float) -> None:
    """What takes back what nobody looks at is killed, and another one begins after so long."""
    world.agent.stop(seconds)


@event
def mark(world: World, run: int, name: str, state: State) -> None:
    """A person sets a task's state: it does not run."""
    found = _task(world, run, name)
    if found is not None and any(task.tries for task in found.run.tasks.values()):
        found.run.touched = True
        found.run.mark(found, state)


@event
def clear(world: World, run: int, name: str) -> None:
    """A person clears a task and all after it: they run again."""
    found = _task(world, run, name)
    if found is not None and found.state in FINISHED:
        found.run.touched = True
        found.run.clear(found)


@event
def stop_run(world: World, run: int, state: Literal["success", "failed"] = "failed") -> None:
    """A person marks a whole run as failed, or as a success."""
    if run < len(world.runs):
        world.runs[run].touched = True
        world.runs[run].stop(state)


@event
def answers_missing(world: World, run: int) -> None:
    """Tasks do not get what other tasks have returned, as with `do_xcom_push=False`."""
    if run < len(world.runs):
        world.runs[run].loses_answers = True


@event
def answer(world: World, chosen: str) -> None:
    """A person answers a question; empty: nobody does in time."""
    for run in world.runs:
        for task in run.tasks.values():
            if task.state == "deferred" and task.id in world.questions and world.questions[task.id] is None:
                world.answer(task.id, chosen)
                if chosen == "Approve":
                    run.approvals.append(world.clock.now())
                else:
                    run.rejected = True
                return


@event
def command(world: World, name: str, version: str, argument: Any = None) -> None:
    """A person takes a step by hand."""
    world.touched.add(version)
    problem = world.command(getattr(steps, name), version, **_arguments(name, argument))
    world.log(f"by hand: {name} {version} {argument}: {problem or 'done'}")
    if name == "roll_back" and argument is None and not problem:
        check_is_at_zero(world, version, "a roll-back by hand")


@event
def task_for_people(world: World, run: int | None, name: str, version: str, argument: Any = None) -> None:
    """A task with `own_rollout=False` takes a step, in a DAG that people trigger or in a run that rolls one out."""
    if run is None or run < len(world.runs):
        world.touched.add(version)
        world.run_for_people(None if run is None else world.runs[run], name, version, argument)


@event
def command_meanwhile(world: World, calls: int, name: str, version: str, argument: Any = None) -> None:
    """A person takes a step by hand between two calls of the next task."""
    world.touched.add(version)
    world.meanwhile = partial(world.by_hand, getattr(steps, name), version, **_arguments(name, argument))
    world.meanwhile_in = calls
    ready = world.runnable()
    if ready:
        world.run_task(ready[0])
    world.meanwhile = None


@event
def made_anew(world: World, version: str) -> None:
    """A version without traffic is deleted by hand and made anew under the same name, by nobody's run."""
    world.touched.add(version)
    world.command(steps.retire, version)
    world.command(steps.deploy, version, **_arguments("deploy", None))


@event
def endpoint_deleted(world: World) -> None:
    """The endpoint is deleted by hand."""
    world.touched.update(VERSIONS)
    world.target.drop()
    world.traffic.counted.clear()


def apply(world: World, happening: Event) -> None:
    """Let an event happen, then check what must always hold."""
    world.log(f"[{world.clock.seconds:g} s] {happening}")
    if DELAYS & {*happening[:2]}:
        for one in world.both:
            one.disturbed_at = world.clock.seconds
    EVENTS[happening[0]](world, *happening[1:])
    for one in world.both:
        check(one)


def settle(world: World, ticks: int = 45) -> None:
    """Let everything answer again and time pass until all runs are over; then check how it ended."""
    for one in world.both:
        one.heal()
    for number in range(ticks):
        if all(run.is_over or (number >= 12 and one.waits_for_person(run)) for one in world.both for run in one.runs):
            break
        tick(world)
        for one in world.both:
            check(one)
    tick(world, 3)
    for one in world.both:
        check(one)
        check_end(one)


def _task(world: World, run: int, name: str) -> TaskInstance | None:
    """Return a run's task by its name in the group; None if there is none."""
    if run >= len(world.runs):
        return None
    return next((task for task in world.runs[run].tasks.values() if task.task_id.endswith(f".{name}")), None)


def _arguments(name: str, argument: Any) -> dict[str, Any]:
    """Return the arguments of a step by hand."""
    if name == "shift":
        return {"percentile": argument}
    if name == "roll_back":
        return {"to": argument}
    if name == "deploy":
        return {"image": image_of("by hand"), "owner": "Ada"}
    return {}
