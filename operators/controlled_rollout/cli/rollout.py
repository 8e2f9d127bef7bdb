"""Commands that change an endpoint: each calls the same step of the engine as an Airflow task."""

import argparse
import asyncio
from datetime import timedelta
from typing import Any, Final

import yaml

from controlled_rollout.cli.arguments import Commands, add_workspace, caller, duration, workspace_of
from controlled_rollout.cli.view import say
from controlled_rollout.defaults import CONFLICT_TIMEOUT, READY_TIMEOUT, RETIRE_TIMEOUT, SERVED_TIMEOUT
from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import Auth, Version
from controlled_rollout.errors import EndpointNotFoundError

__all__ = ["add_to"]

# Fields of a version that the steps of a rollout set.
NOT_SETTINGS: Final = ("name", "image", "traffic_percentile", "is_default", "is_control")


def add_to(commands: Commands) -> None:
    """Add `deploy`, `shift`, `promote`, `rollback` and `retire`."""
    _add_roll_out(commands)
    shift = _add_step(commands, "shift", _shift, "set a version's per cent of the traffic", timeout=SERVED_TIMEOUT)
    shift.add_argument("percentile", type=float, help="per cent of the requests, 0 to 100")
    promote = "make a version default and control with all the traffic"
    _add_step(commands, "promote", _promote, promote, timeout=SERVED_TIMEOUT)
    roll_back = "set a version to 0 %% at once and end its rollout"
    _add_step(commands, "rollback", _roll_back, roll_back, timeout=SERVED_TIMEOUT, reason_required=True).add_argument(
        "--to", metavar="VERSION", help="for a version that is the control: the version that takes its place at once"
    )
    _add_step(commands, "retire", _retire, "delete a version that has no traffic", timeout=RETIRE_TIMEOUT)


def _add_step(
    commands: Commands, name: str, run: Any, purpose: str, *, timeout: timedelta, reason_required: bool = False
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose)
    parser.add_argument("endpoint", help="the endpoint's name")
    parser.add_argument("version", help="the version's name")
    parser.add_argument("--reason", default="", required=reason_required, help="the reason, for the endpoint's history")
    parser.add_argument(
        "--timeout",
        type=duration,
        default=timeout,
        metavar="DURATION",
        help=f"how long to wait until it is done, such as '5 min' (default {format_duration(timeout)})",
    )
    add_workspace(parser)
    parser.set_defaults(run=run)
    return parser


def _add_roll_out(commands: Commands) -> None:
    roll_out = _add_step(
        commands,
        "deploy",
        _roll_out,
        "create a version at 0 %%; the first version of a new endpoint gets all the traffic",
        timeout=READY_TIMEOUT,
    )
    roll_out.add_argument(
        "--image", required=True, metavar="NAME@sha256:DIGEST", help="what the version runs, by digest"
    )
    roll_out.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        type=_setting,
        action="append",
        dest="settings",
        help="a field of the version, such as cpu_cores=0.5; may be repeated",
    )
    roll_out.add_argument(
        "--auth",
        choices=[str(auth) for auth in Auth],
        default=str(Auth.KEY),
        help="how callers of a new endpoint authenticate (default %(default)s)",
    )
    roll_out.add_argument(
        "--on-conflict",
        choices=["fail", "wait"],
        default="fail",
        help="while somebody else's rollout holds the endpoint (default %(default)s)",
    )
    roll_out.add_argument(
        "--conflict-timeout",
        type=duration,
        default=CONFLICT_TIMEOUT,
        metavar="DURATION",
        help=f"how long to wait for that (default {format_duration(CONFLICT_TIMEOUT)})",
    )


def _roll_out(options: argparse.Namespace) -> int:
    from controlled_rollout import steps
    from controlled_rollout.image.reference import ImageReference

    rolled_out = steps.roll_out(
        workspace_of(options),
        options.endpoint,
        options.version,
        image=str(ImageReference.parse(options.image)),
        owner=caller(),
        auth=Auth(options.auth),
        settings=dict(options.settings or ()),
        conflict_timeout=options.conflict_timeout if options.on_conflict == "wait" else timedelta(0),
        **_change(options),
    )
    asyncio.run(rolled_out)
    return 0


def _shift(options: argparse.Namespace) -> int:
    from controlled_rollout import steps

    asyncio.run(steps.shift(*_version(options), percentile=options.percentile, **_change(options)))
    return 0


def _promote(options: argparse.Namespace) -> int:
    from controlled_rollout import steps

    asyncio.run(steps.promote(*_version(options), **_change(options)))
    return 0


def _roll_back(options: argparse.Namespace) -> int:
    from controlled_rollout import steps

    if asyncio.run(steps.roll_back(*_version(options), to=options.to, **_change(options))) is None:
        # For a task this is no error; a person may have mistyped a name.
        raise EndpointNotFoundError(
            f"there is no version {options.version!r} of an endpoint {options.endpoint!r} to roll back: "
            "`controlled-rollout status` lists them"
        )
    return 0


def _retire(options: argparse.Namespace) -> int:
    from controlled_rollout import steps

    if asyncio.run(steps.retire(*_version(options), **_change(options))) is None:
        say(f"there is no endpoint {options.endpoint!r}: nothing to delete")
    return 0


def _version(options: argparse.Namespace) -> tuple[Any, str, str]:
    return workspace_of(options), options.endpoint, options.version


def _change(options: argparse.Namespace) -> dict[str, Any]:
    from controlled_rollout.target.protocol import Change

    change = Change(who=caller(), why=options.reason)
    return {"change": change, "timeout": options.timeout, "progress": say}


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    known = [field for field in Version.model_fields if field not in NOT_SETTINGS]
    if not separator or name not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE with one of the fields {', '.join(known)}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is not a value: quote it as in YAML") from None
