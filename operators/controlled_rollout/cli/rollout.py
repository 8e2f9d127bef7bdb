"""Commands that change an endpoint: each calls the same step of the engine as an Airflow task."""

import argparse
import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from controlled_rollout.cli.arguments import (
    Commands,
    add_workspace_options,
    caller,
    duration,
    environment_variable,
    not_blank,
    workspace_of,
)
from controlled_rollout.cli.output import add_output_option, is_table, show
from controlled_rollout.cli.progress import at_work
from controlled_rollout.cli.settings_file import read_value
from controlled_rollout.cli.view import print_line, print_progress
from controlled_rollout.defaults import (
    CONFLICT_TIMEOUT,
    READY_TIMEOUT,
    RETIRE_TIMEOUT,
    ROLL_BACK_TIMEOUT,
    SERVED_TIMEOUT,
    SILENCE,
)
from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, EndpointNotFoundError
from controlled_rollout.rollout import OnSilence
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.version import SET_BY_STEPS, Version

__all__ = ["add_to"]

Stored = TypeVar("Stored", Endpoint, Endpoint | None)


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `deploy`, `shift`, `hold`, `promote`, `rollback` and `retire`."""
    _add_deploy_command(commands)
    shift = _add_step_command(
        commands, "shift", _run_shift, "set a version's per cent of the traffic", timeout=SERVED_TIMEOUT
    )
    shift.add_argument("percentile", type=float, help="per cent of the requests, 0 to 100")
    _add_step_command(
        commands, "hold", _run_hold, "put a rollout on hold: its gate lets it go on no more, a person decides",
        timeout=SERVED_TIMEOUT, reason_required=True,
    )  # fmt: skip
    promote = "make a version default and control with all the traffic"
    _add_step_command(commands, "promote", _run_promote, promote, timeout=SERVED_TIMEOUT)
    roll_back = "set a version to 0 %% at once and end its rollout"
    _add_step_command(
        commands, "rollback", _run_rollback, roll_back, timeout=ROLL_BACK_TIMEOUT, reason_required=True
    ).add_argument(
        "--to", metavar="VERSION", help="for a version that is the control: the version that takes its place at once"
    )
    _add_step_command(commands, "retire", _run_retire, "delete a version that has no traffic", timeout=RETIRE_TIMEOUT)


def _add_step_command(
    commands: Commands, name: str, run: Any, purpose: str, *, timeout: timedelta, reason_required: bool = False
) -> argparse.ArgumentParser:
    """Add a command's parser with the arguments that all steps of a rollout share, and return the parser."""
    parser = commands.add_parser(name, help=purpose)
    parser.add_argument("endpoint", help="the endpoint's name")
    parser.add_argument("version", help="the version's name")
    parser.add_argument(
        "--reason",
        type=not_blank if reason_required else str,
        default="",
        required=reason_required,
        help="the reason, for the endpoint's history",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        default=timeout,
        metavar="DURATION",
        help=f"how long to wait until it is done, such as '5 min' (default {format_duration(timeout)})",
    )
    add_output_option(parser)
    add_workspace_options(parser)
    parser.set_defaults(run=run)
    return parser


def _add_deploy_command(commands: Commands) -> None:
    """Add the parser of `deploy`, with the options of a new version."""
    deploy = _add_step_command(
        commands,
        "deploy",
        _run_deploy,
        "create a version at 0 %%; the first version of a new endpoint gets all the traffic",
        timeout=READY_TIMEOUT,
    )
    deploy.add_argument("--image", required=True, metavar="NAME@sha256:DIGEST", help="what the version runs, by digest")
    deploy.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        type=_field_and_value,
        action="append",
        dest="settings",
        help="a field of the version, such as cpu_cores=0.5; may be repeated",
    )
    deploy.add_argument(
        "--env",
        metavar="NAME=VALUE",
        type=environment_variable,
        action="append",
        default=[],
        help="an environment variable for the script; may be repeated",
    )
    deploy.add_argument(
        "--secret-env",
        metavar="NAME=SECRET/KEY",
        type=_secret_variable,
        action="append",
        default=[],
        help="an environment variable from a key of a secret, see the command secret; may be repeated",
    )
    deploy.add_argument(
        "--auth",
        type=_authentication,
        metavar="key|token|none|ISSUER",
        help="how callers of a new endpoint authenticate (default key): with keys, with tokens of the "
        "endpoint's own, not at all, or with tokens of an outside issuer, whose fields are given as YAML, such as "
        "'{issuer: https://…, audience: …, jwks_uri: https://…}'",
    )
    deploy.add_argument(
        "--sticky",
        metavar="KEY",
        help="by what callers of a new endpoint stay with a version: header:NAME or cookie:NAME (default: nothing)",
    )
    _add_rollout_options(deploy)


def _add_rollout_options(deploy: argparse.ArgumentParser) -> None:
    """Add the options of `deploy` that are about its rollout: what happens without looks, and beside another one."""
    deploy.add_argument(
        "--on-silence",
        choices=[str(choice) for choice in OnSilence],
        default=str(OnSilence.KEEP),
        help="what happens to the version while it has traffic and nobody has looked for --silence: a shift to the "
        "share that it has counts as a look (default %(default)s)",
    )
    deploy.add_argument(
        "--silence",
        type=duration,
        default=SILENCE,
        metavar="DURATION",
        help=f"how long that is (default {format_duration(SILENCE)})",
    )
    deploy.add_argument(
        "--on-conflict",
        choices=["fail", "wait"],
        default="fail",
        help="while somebody else's rollout holds the endpoint (default %(default)s)",
    )
    deploy.add_argument(
        "--conflict-timeout",
        type=duration,
        default=CONFLICT_TIMEOUT,
        metavar="DURATION",
        help=f"how long to wait for that (default {format_duration(CONFLICT_TIMEOUT)})",
    )


def _run_deploy(options: argparse.Namespace) -> int:
    """Run `controlled-rollout deploy`: create a version and wait until it is ready; return the exit code."""
    from controlled_rollout import steps
    from controlled_rollout.image.reference import ImageReference

    settings = dict(options.settings or ())
    if variables := dict([*options.env, *options.secret_env]):
        settings["environment_variables"] = {**(settings.get("environment_variables") or {}), **variables}
    step_options = _step_options(options)
    deployed = steps.deploy(
        workspace_of(options),
        options.endpoint,
        options.version,
        image=str(ImageReference.parse(options.image)),
        owner=step_options["change"].who,
        sticky=options.sticky,
        on_silence=OnSilence(options.on_silence),
        silence=options.silence,
        auth=options.auth,
        settings=settings,
        conflict_timeout=options.conflict_timeout if options.on_conflict == "wait" else timedelta(0),
        **step_options,
    )
    return _show_step(options, "deploy", _run_step(options, "deploy", deployed))


def _run_shift(options: argparse.Namespace) -> int:
    """Run `controlled-rollout shift`: set a version's per cent of the traffic; return the exit code."""
    from controlled_rollout import steps

    shifted = steps.shift(*_step_arguments(options), percentile=options.percentile, **_step_options(options))
    return _show_step(options, "shift", _run_step(options, "shift", shifted))


def _run_hold(options: argparse.Namespace) -> int:
    """Run `controlled-rollout hold`: put the rollout of a version on hold; return the exit code."""
    from controlled_rollout.steps.holding import hold

    held = hold(*_step_arguments(options), **_step_options(options))
    return _show_step(options, "hold", _run_step(options, "hold", held))


def _run_promote(options: argparse.Namespace) -> int:
    """Run `controlled-rollout promote`: make a version control with all the traffic; return the exit code."""
    from controlled_rollout import steps

    promoted = steps.promote(*_step_arguments(options), **_step_options(options))
    return _show_step(options, "promote", _run_step(options, "promote", promoted))


def _run_rollback(options: argparse.Namespace) -> int:
    """Run `controlled-rollout rollback`: set a version to 0 %; return the exit code, raise if it does not exist."""
    from controlled_rollout import steps

    step = steps.roll_back(*_step_arguments(options), to=options.to, **_step_options(options))
    rolled_back = _run_step(options, "roll back", step)
    if rolled_back is None:
        # For a task this is no error; a person may have mistyped a name.
        raise EndpointNotFoundError(
            f"there is no version {options.version!r} of an endpoint {options.endpoint!r} to roll back: "
            "`controlled-rollout status` lists them"
        )
    return _show_step(options, "roll_back", rolled_back)


def _run_retire(options: argparse.Namespace) -> int:
    """Run `controlled-rollout retire`: delete a version without traffic; return the exit code."""
    from controlled_rollout import steps

    step = steps.retire(*_step_arguments(options), by_hand=True, **_step_options(options))
    retired = _run_step(options, "retire", step)
    if retired is None and is_table(options):
        print_line(f"there is no endpoint {options.endpoint!r}: nothing to delete")
    return _show_step(options, "retire", retired)


def _run_step(options: argparse.Namespace, verb: str, step: Coroutine[Any, Any, Stored]) -> Stored:
    """Run a step to its end, with a moving bar on a terminal, and return its result."""
    with at_work(f"{verb} {options.version} of {options.endpoint}"):
        return asyncio.run(step)


def _show_step(options: argparse.Namespace, step: str, stored: Endpoint | None) -> int:
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


def _step_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of a step: author and reason of the change, timeout, progress output."""
    from controlled_rollout.target.protocol import Change

    change = Change(who=caller(workspace_of(options)), reason=options.reason)
    progress = print_line if is_table(options) else print_progress
    return {"change": change, "timeout": options.timeout, "progress": progress}


def _authentication(text: str) -> Auth | TokenIssuer | None:
    """Parse the value of `--auth` (argparse type)."""
    from controlled_rollout.arguments import authentication

    try:
        return authentication("auth", read_value(text) if text.lstrip().startswith("{") else text)
    except ControlledRolloutError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _secret_variable(text: str) -> tuple[str, dict[str, str]]:
    """Parse the value of `--secret-env`, `NAME=SECRET/KEY`, into name and reference (argparse type)."""
    name, is_named, reference = text.partition("=")
    secret, separator, key = reference.partition("/")
    if not (name and secret and separator and key):
        # Not the text: it may be the secret's value.
        variable = name if is_named and name else "a variable"
        raise argparse.ArgumentTypeError(
            f"what is given for {variable} is not of the form NAME=SECRET/KEY: store the value with "
            "`controlled-rollout secret SECRET KEY`"
        )
    return name, {"secret": secret, "key": key}


def _field_and_value(text: str) -> tuple[str, Any]:
    """Parse the value of `--set`, `FIELD=VALUE`, into field name and YAML value (argparse type)."""
    name, separator, value = text.partition("=")
    known = [field for field in Version.model_fields if field not in SET_BY_STEPS]
    if not separator or name not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE with one of the fields {', '.join(known)}")
    try:
        return name, read_value(value)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None
