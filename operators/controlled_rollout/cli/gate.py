"""The commands `gate` and `plan`: what a gate says of a version now, and what a rollout would do and can show."""

import argparse
import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from controlled_rollout.cli.arguments import (
    Commands,
    add_file_option,
    add_subject,
    add_workspace_options,
    caller,
    duration,
    workspace_of,
)
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, is_table, show
from controlled_rollout.cli.progress import at_work
from controlled_rollout.cli.view import print_line, print_progress
from controlled_rollout.defaults import BAKE, DECISION_TIMEOUT, KEEP_WARM, LOOK_INTERVAL, STEPS
from controlled_rollout.duration import format_duration
from controlled_rollout.errors import ArgumentError, ConflictError, EndpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlled_rollout.checks.plan import RolloutPlan
    from controlled_rollout.cli.endpoint_settings import RolloutSettings
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.evaluation.next_action import GateTerms, LookResult
    from controlled_rollout.evidence import EvidenceWindow
    from controlled_rollout.workspace import Workspace

__all__ = ["add_to", "differences"]


def add_to(commands: Commands) -> None:
    """Add the parsers of `gate` and `plan`."""
    gate = commands.add_parser(
        "gate", help="look at a version's evidence as a rollout's gate would, once or until it is decided"
    )
    _add_gate_arguments(gate)
    gate.add_argument("--wait", action="store_true", help="look again until there is a decision")
    gate.add_argument(
        "--interval", type=duration, default=LOOK_INTERVAL, metavar="DURATION",
        help=f"with --wait: the time between two looks (default {format_duration(LOOK_INTERVAL)})",
    )  # fmt: skip
    gate.add_argument("--only-alarms", action="store_true", help="it need not pass: enough that no claim alarms")
    gate.set_defaults(run=_run_gate)

    plan = commands.add_parser(
        "plan", help="show what a rollout of a version would do, and what each of its steps can show; change nothing"
    )
    _add_gate_arguments(plan)
    plan.add_argument(
        "--steps", type=_steps, metavar="PERCENT,…",
        help=f"the version's per cent at each step (default {','.join(map('{:g}'.format, STEPS))})",
    )  # fmt: skip
    plan.add_argument("--image", metavar="NAME@sha256:DIGEST", help="what the version would run")
    plan.add_argument(
        "--keep-warm", type=duration, metavar="DURATION",
        help=f"how long the former control stays (default {format_duration(KEEP_WARM)})",
    )  # fmt: skip
    plan.set_defaults(run=_run_plan)


def _add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say at what a gate looks, and what it asks for."""
    add_file_option(parser, *add_subject(parser))
    parser.add_argument(
        "--gate", type=Path, metavar="FILE", help="the gate's fields, as YAML or JSON (else the default)"
    )
    for option, default, purpose in (
        ("--bake", BAKE, "the least time at the present share"),
        ("--decision-timeout", DECISION_TIMEOUT, "how long to wait for a decision after the split was set"),
        ("--bin-width", None, "the length of a time bin of the evidence"),
        ("--allowed-lag", None, "how late telemetry may arrive"),
        ("--baseline-length", None, "how far before the rollout control's latency is taken from"),
    ):
        usual = format_duration(default if default is not None else _window_default(option))
        parser.add_argument(option, type=duration, metavar="DURATION", help=f"{purpose} (default {usual})")
    parser.add_argument(
        "--min-requests", type=_whole_number, metavar="NUMBER", help="the fewest requests at the share (0)"
    )
    add_output_option(parser)
    add_workspace_options(parser)


def _window_default(option: str) -> timedelta:
    """Return the default of an option that says how evidence is read."""
    from controlled_rollout.evidence import EvidenceWindow

    value: timedelta = getattr(EvidenceWindow(), option.removeprefix("--").replace("-", "_"))
    return value


def _run_gate(options: argparse.Namespace) -> int:
    """Run `controlled-rollout gate`: look once, or until there is a decision; return the exit code of the verdict.

    Raises:
        ConflictError: The version is not there, or cannot be compared.
    """
    from controlled_rollout.evaluation.next_action import NextAction, take_look

    asked = _rollout(options)
    workspace, terms = workspace_of(options), _terms(options, asked)
    log = print_line if is_table(options) else print_progress

    async def look() -> "LookResult":
        """Look until the gate has decided, or once without `--wait`."""
        while True:
            result = await take_look(workspace, terms, log, acts=False)
            if result.action is not NextAction.WAIT or not options.wait:
                return result
            await asyncio.sleep(terms.interval.total_seconds())

    with at_work(f"look at {options.version} of {options.endpoint}"):
        result = asyncio.run(look())
    if result.action is NextAction.CONFLICT:
        raise ConflictError(result.reason)
    # The lines of text are in the log already.
    show(options, result.to_event(), [])
    return {
        NextAction.GO_ON: ExitCode.DONE,
        NextAction.FAIL: ExitCode.GATE_FAILED,
        NextAction.WAIT: ExitCode.NOT_DECIDED,
        NextAction.NOTHING_TO_COMPARE: ExitCode.NOTHING_TO_COMPARE,
    }.get(result.action, ExitCode.DEADLINE)


def _rollout(options: argparse.Namespace) -> "RolloutSettings":
    """Return how the version is rolled out: as options say it, else as the file does, else by default.

    The names of endpoint and version in `options` are those that are meant afterwards.

    Raises:
        ArgumentError: A file cannot be read, or does not have the version.
    """
    from controlled_rollout.cli.endpoint_file import read_endpoint_file
    from controlled_rollout.cli.endpoint_settings import RolloutSettings
    from controlled_rollout.cli.gate_file import read_gate

    said, overruled = RolloutSettings(), list[str]()
    if options.file is not None:
        file = read_endpoint_file(options.file)
        said = file.rollout
        try:
            options.endpoint, entry = file.subject(options.endpoint, options.version)
        except ArgumentError as error:
            raise ArgumentError(f"{options.file}: {error}") from error
        options.version = entry.name
        if options.endpoint != file.name:
            overruled.append(f"the endpoint {options.endpoint}")
        if getattr(options, "image", "") is None:
            options.image = entry.image or None
        elif hasattr(options, "image") and (entry.build or entry.image not in ("", options.image)):
            overruled.append("--image")
    given = {name: getattr(options, name, None) for name in RolloutSettings.model_fields}
    given = {name: value for name, value in given.items() if value is not None}
    if options.gate is not None:
        given["gate"] = read_gate(options.gate)
    named = [name for name in given if name in said.model_fields_set and getattr(said, name) != given[name]]
    if overruled := [*overruled, *(f"--{name.replace('_', '-')}" for name in named)]:
        print_progress(f"as given here, and not as in {options.file}: {', '.join(overruled)}")
    return said.model_copy(update=given)


def _terms(options: argparse.Namespace, asked: "RolloutSettings") -> "GateTerms":
    """Return what the gate asks for, and how it looks."""
    from controlled_rollout.arguments import gate_of
    from controlled_rollout.evaluation.next_action import GateTerms

    if options.interval <= timedelta(0):
        raise ArgumentError("--interval 0 s: a gate has to wait between two looks: give more than 0")
    return GateTerms(
        endpoint=options.endpoint,
        version=options.version,
        who=caller(workspace_of(options)),
        owner=None,
        gate=gate_of(asked.gate),
        bake=asked.bake,
        min_requests=asked.min_requests,
        require_pass=not options.only_alarms,
        decision_timeout=asked.decision_timeout,
        on_deadline="hold",
        interval=options.interval,
        window=_window(asked),
        waiting_since=datetime.now(UTC),
    )


def _window(asked: "RolloutSettings") -> "EvidenceWindow":
    """Return how evidence is read."""
    from controlled_rollout.evidence import EvidenceWindow

    return EvidenceWindow(**{name: getattr(asked, name) for name in EvidenceWindow.model_fields})


def _run_plan(options: argparse.Namespace) -> int:
    """Run `controlled-rollout plan`: print changes, steps and forecast; return exit code 1 if it cannot be done.

    Raises:
        EndpointError: A name is not valid.
        ImageError: The image is not named by its digest.
    """
    from controlled_rollout.arguments import gate_of
    from controlled_rollout.checks.forecast import forecast_of_plan
    from controlled_rollout.checks.plan import RolloutPlan, contradictions
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.image.reference import ImageReference

    asked = _rollout(options)
    Endpoint(name=options.endpoint).create_version(options.version)  # what `deploy` would refuse is refused here, too
    image = str(ImageReference.parse(options.image)) if options.image is not None else None
    workspace, gate, window = workspace_of(options), gate_of(asked.gate), _window(asked)
    plan = RolloutPlan(
        endpoint=options.endpoint, version=options.version, steps=asked.steps, bake=asked.bake,
        min_requests=max(1, asked.min_requests), pass_every_step=False, decision_timeout=asked.decision_timeout,
        on_deadline="hold", approval=False, on_silence=asked.on_silence, silence=asked.silence,
        keep_warm=asked.keep_warm, keep_treatment=False,
    )  # fmt: skip
    problems = contradictions(
        bake=plan.bake, decision_timeout=plan.decision_timeout, interval=LOOK_INTERVAL, window=window
    )

    async def read() -> tuple["Endpoint | None", str]:
        """Return the endpoint as it is, and what the steps can show at its present traffic."""
        endpoint = await _endpoint(workspace, options.endpoint)
        return endpoint, await forecast_of_plan(workspace, plan, gate=gate, window=window)

    endpoint, expected = asyncio.run(read())
    changed, refused = differences(endpoint, plan, image)
    problems += refused
    document = {
        "endpoint": plan.endpoint, "version": plan.version, "changes": changed, "problems": problems,
        "steps": str(plan).splitlines()[1:], "forecast": expected.splitlines(),
    }  # fmt: skip
    lines = [*(f"change: {change}" for change in changed), *str(plan).splitlines(), *expected.splitlines()]
    show(options, document, [*lines, *(f"problem: {problem}" for problem in problems)])
    return ExitCode.FAILED if problems else ExitCode.DONE


def differences(endpoint: "Endpoint | None", plan: "RolloutPlan", image: str | None) -> tuple[list[str], list[str]]:
    """Return what a rollout would change at an endpoint at first, and why it could not, a sentence each. Pure.

    Args:
        endpoint: The endpoint as it is; None if there is none.
        plan: The rollout.
        image: What the version would run; None if that is not said.
    """
    from controlled_rollout.checks.plan import room_for

    if endpoint is None:
        return [
            f"endpoint {plan.endpoint!r} is created",
            f"version {plan.version!r} is created, becomes control and gets all the traffic: there is nothing to "
            "compare it with",
        ], []
    problems = []
    changes = []
    if endpoint.rollout is not None and endpoint.rollout.version != plan.version:
        problems.append(
            f"the endpoint is held by {endpoint.rollout.owner} for {endpoint.rollout.version!r}: wait, or end that "
            "rollout"
        )
    existing = endpoint.versions.get(plan.version)
    if existing is None:
        full, warning = room_for(endpoint, plan.version)
        problems += filter(None, [full])
        changes.append(f"version {plan.version!r} is created at 0 %" + (f"; {warning}" if warning else ""))
    elif existing.is_control:
        problems.append(f"version {plan.version!r} is the control already: there is nothing to roll out")
    elif image is not None and existing.image != image:
        problems.append(f"version {plan.version!r} exists with the image {existing.image}: give it another name")
    else:
        changes.append(f"version {plan.version!r} exists, and stays as it is")
    return changes, problems


async def _endpoint(workspace: "Workspace", name: str) -> "Endpoint | None":
    """Return an endpoint's newest revision; None if there is none of that name."""
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        try:
            return await target.endpoint(name)
        except EndpointNotFoundError:
            return None


def _steps(text: str) -> "Sequence[float]":
    """Parse the value of `--steps`, such as `10,50`, as ascending percentiles (argparse type)."""
    from controlled_rollout.checks.plan import check_steps
    from controlled_rollout.endpoint import LEAST_SHARE

    try:
        steps = tuple(float(step) for step in text.split(","))
        check_steps(steps)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the per cent of each step: give numbers with commas between, ascending, above 0 and up "
            f"to 100, {LEAST_SHARE:g} or more apart, such as 10,50"
        ) from None
    return steps


def _whole_number(text: str) -> int:
    """Parse an option's value as a whole number of 0 or more (argparse type)."""
    if not text.isdigit() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)
