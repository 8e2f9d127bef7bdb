"""Commands that change an endpoint: each calls the same step of the engine as an Airflow task."""

import argparse
import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from controlled_rollout.cli.arguments import (
    Commands,
    add_step_options,
    add_subject,
    caller,
    percentile,
    workspace_of,
)
from controlled_rollout.cli.output import is_table, show
from controlled_rollout.cli.progress import at_work
from controlled_rollout.cli.view import print_line, print_progress
from controlled_rollout.defaults import (
    RETIRE_TIMEOUT,
    ROLL_BACK_TIMEOUT,
    SERVED_TIMEOUT,
)
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointNotFoundError

__all__ = ["add_step_command", "add_to", "run_step", "show_step", "step_options"]

Stored = TypeVar("Stored", Endpoint, Endpoint | None)


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `shift`, `hold`, `promote`, `rollback` and `retire`."""
    shift = add_step_command(
        commands, "shift", _run_shift, "set a version's per cent of the traffic", timeout=SERVED_TIMEOUT
    )
    shift.add_argument("percentile", type=percentile, help="per cent of the requests, 0 to 100")
    add_step_command(
        commands, "hold", _run_hold, "put a rollout on hold: its gate lets it go on no more, a person decides",
        timeout=SERVED_TIMEOUT, reason_required=True,
    )  # fmt: skip
    promote = "make a version default and control with all the traffic"
    add_step_command(commands, "promote", _run_promote, promote, timeout=SERVED_TIMEOUT)
    roll_back = "set a version to 0 %% at once and end its rollout"
    add_step_command(
        commands, "rollback", _run_rollback, roll_back, timeout=ROLL_BACK_TIMEOUT, reason_required=True
    ).add_argument(
        "--to", metavar="VERSION", help="for a version that is the control: the version that takes its place at once"
    )
    add_step_command(commands, "retire", _run_retire, "delete a version that has no traffic", timeout=RETIRE_TIMEOUT)


def add_step_command(
    commands: Commands, name: str, run: Any, purpose: str, *, timeout: timedelta, reason_required: bool = False
) -> argparse.ArgumentParser:
    """Add a command's parser with the arguments that all steps of a rollout share, and return the parser."""
    parser = commands.add_parser(name, help=purpose)
    add_subject(parser)
    add_step_options(parser, timeout, reason_required=reason_required)
    parser.set_defaults(run=run)
    return parser


def _run_shift(options: argparse.Namespace) -> int:
    """Run `controlled-rollout shift`: set a version's per cent of the traffic; return the exit code."""
    from controlled_rollout import steps

    shifted = steps.shift(*_step_arguments(options), percentile=options.percentile, **step_options(options))
    return show_step(options, "shift", run_step(options, "shift", shifted))


def _run_hold(options: argparse.Namespace) -> int:
    """Run `controlled-rollout hold`: put the rollout of a version on hold; return the exit code."""
    from controlled_rollout.steps.holding import hold

    held = hold(*_step_arguments(options), **step_options(options))
    return show_step(options, "hold", run_step(options, "hold", held))


def _run_promote(options: argparse.Namespace) -> int:
    """Run `controlled-rollout promote`: make a version control with all the traffic; return the exit code."""
    from controlled_rollout import steps

    promoted = steps.promote(*_step_arguments(options), **step_options(options))
    return show_step(options, "promote", run_step(options, "promote", promoted))


def _run_rollback(options: argparse.Namespace) -> int:
    """Run `controlled-rollout rollback`: set a version to 0 %; return the exit code, raise if it does not exist."""
    from controlled_rollout import steps

    step = steps.roll_back(*_step_arguments(options), to=options.to, **step_options(options))
    rolled_back = run_step(options, "roll back", step)
    if rolled_back is None:
        # For a task this is no error; a person may have mistyped a name.
        raise EndpointNotFoundError(
            f"there is no version {options.version!r} of an endpoint {options.endpoint!r} to roll back: "
            "`controlled-rollout status` lists them"
        )
    return show_step(options, "roll_back", rolled_back)


def _run_retire(options: argparse.Namespace) -> int:
    """Run `controlled-rollout retire`: delete a version without traffic; return the exit code."""
    from controlled_rollout import steps

    step = steps.retire(*_step_arguments(options), by_hand=True, **step_options(options))
    retired = run_step(options, "retire", step)
    if retired is None and is_table(options):
        print_line(f"there is no endpoint {options.endpoint!r}: nothing to delete")
    return show_step(options, "retire", retired)


def run_step(options: argparse.Namespace, verb: str, step: Coroutine[Any, Any, Stored]) -> Stored:
    """Run a step to its end, with a moving bar on a terminal, and return its result."""
    with at_work(f"{verb} {options.version} of {options.endpoint}"):
        return asyncio.run(step)


def show_step(options: argparse.Namespace, step: str, stored: Endpoint | None) -> int:
    """Print the endpoint after a step as a document; a table has said in sentences what happened. Return exit code 0.

    Args:
        options: The command's options.
        step: The step, as the record calls it.
        stored: The endpoint as stored; None if there is none.
    """
    document = {
        "step": step,
        "endpoint": options.endpoint,
        "version": options.version,
        "revision": stored.revision if stored else None,
        "traffic": stored.effective_traffic() if stored else {},
    }
    show(options, document, [])
    return 0


def _step_arguments(options: argparse.Namespace) -> tuple[Any, str, str]:
    """Return the positional arguments of a step: workspace, endpoint name and version name."""
    return workspace_of(options), options.endpoint, options.version


def step_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of a step: author and reason of the change, timeout, progress output."""
    from controlled_rollout.target.protocol import Change

    change = Change(who=caller(workspace_of(options)), reason=options.reason)
    progress = print_line if is_table(options) else print_progress
    return {"change": change, "timeout": options.timeout, "progress": progress}
