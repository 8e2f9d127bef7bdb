"""Options that several commands share, and how their values are read."""

import argparse
import asyncio
import math
import os
import pwd
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

from controlled_rollout.cli.output import add_output_option
from controlled_rollout.cli.workspace_file import read_workspace
from controlled_rollout.duration import format_duration, parse_duration
from controlled_rollout.errors import ImageError
from controlled_rollout.workspace import Workspace

__all__ = [
    "Commands",
    "add_file_option",
    "add_root_option",
    "add_step_options",
    "add_subject",
    "add_workspace_options",
    "caller",
    "duration",
    "environment_variable",
    "line_count",
    "model_name_and_path",
    "not_blank",
    "percentile",
    "port",
    "positive_number",
    "workspace_of",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

MOST: Final = 1e9
WORKSPACE_VARIABLE: Final = "CONTROLLED_ROLLOUT_WORKSPACE"


def add_root_option(parser: "argparse._ActionsContainer") -> None:
    """Add the option `--root` (the local workspace's folder) to a parser or an option group."""
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="the local workspace's folder (else $CONTROLLED_ROLLOUT_HOME, else ~/.controlled-rollout)",
    )


def add_workspace_options(parser: argparse.ArgumentParser) -> None:
    """Add the options `--workspace` and `--root` to a parser; they exclude each other."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--workspace",
        type=Path,
        metavar="FILE",
        help=f"the workspace's settings, YAML or JSON (else ${WORKSPACE_VARIABLE}, else the local workspace)",
    )
    add_root_option(group)


def add_subject(parser: argparse.ArgumentParser) -> tuple[argparse.Action, argparse.Action]:
    """Add the arguments `endpoint` and `version` to a parser, and return them."""
    return (
        parser.add_argument("endpoint", help="the endpoint's name"),
        parser.add_argument("version", help="the version's name"),
    )


def add_step_options(parser: argparse.ArgumentParser, timeout: timedelta, *, reason_required: bool = False) -> None:
    """Add the options that all steps of a rollout share."""
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


class _FileAction(argparse.Action):
    """Takes the place of a file, with which other arguments need not be given."""

    def __init__(self, *arguments: Any, optional: Sequence[argparse.Action], **more: Any) -> None:
        """Remember the arguments that the file stands for."""
        super().__init__(*arguments, **more)
        self._optional = optional

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the file's place."""
        setattr(namespace, self.dest, values)
        for action in self._optional:
            action.required = False


def add_file_option(parser: argparse.ArgumentParser, *optional: argparse.Action) -> None:
    """Add the option `--file` for an endpoint's file to a parser.

    Args:
        parser: The parser.
        *optional: The arguments that need not be given with it.
    """
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        action=_FileAction,
        optional=optional,
        metavar="FILE",
        help="the endpoint's file, YAML or JSON: what is not given here is taken from it; then one name is that of the "
        "version, which may be left out if the file has only one",
    )


def workspace_of(options: argparse.Namespace) -> Workspace:
    """Return the workspace that `--workspace`, `--root` or `$CONTROLLED_ROLLOUT_WORKSPACE` names.

    Raises:
        WorkspaceError: Its file cannot be read, or its settings are not valid.
    """
    if options.workspace is not None:
        return read_workspace(options.workspace)
    if options.root is None and (file := os.environ.get(WORKSPACE_VARIABLE)):
        return read_workspace(Path(file))
    return Workspace.local(options.root)


def caller(workspace: Workspace) -> str:
    """Return `user@host`, the author of a change for the history, as the system says: no variable can name another.

    On Kubernetes the user is who the API server says that this identity is.

    Raises:
        ControlledRolloutError: The API server does not answer, or refuses this identity.
    """
    user = asyncio.run(_api_user(workspace)) if workspace.target == "kubernetes" else _system_user()
    return f"{user}@{socket.gethostname()}"


def _system_user() -> str:
    """Return the name of this process's user; the number of one that has no name, as in a container."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


async def _api_user(workspace: Workspace) -> str:
    """Return the name of the user that the workspace's API server takes this process for."""
    from controlled_rollout.cluster.api import Api

    async with Api.open(workspace) as api:
        return await api.user()


def duration(text: str) -> timedelta:
    """Parse an option's value such as `5 min` as a duration (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text is not a length of time.
    """
    try:
        return parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a length of time: give seconds, or a number with s, min, h or d, such as '5 min', or ISO "
            "8601 such as PT5M or P30D, without months and years; ten years at most"
        ) from None


def percentile(text: str) -> float:
    """Parse an option's value as a per cent of the traffic, 0 to 100 (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    value = _number_or_nan(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a per cent of the requests: give a number, 0 to 100")
    return value


def not_blank(text: str) -> str:
    """Return an option's value as it is, if it says anything (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text is empty, or only spaces.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: the endpoint's history needs a reason")
    return text


def port(text: str) -> int:
    """Parse an option's value as a TCP port, 1 to 65535 (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text is not a port.
    """
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return int(text)


def environment_variable(text: str) -> tuple[str, str]:
    """Parse an option's value `NAME=VALUE`, or `NAME` for this process's own value, as a variable (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text has no name, or this process has no such variable.
    """
    name, separator, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError("a variable without a name is not of the form NAME=VALUE")
    if separator:
        return name, value
    if name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here: give {name}=VALUE, or export it")
    return name, os.environ[name]


def line_count(text: str) -> int:
    """Parse an option's value as a number of lines, 1 to 100000 (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    if not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines, from 1 to 100000")
    return int(text)


def positive_number(text: str) -> float:
    """Parse an option's value as a number above 0 and at most a thousand million (argparse type).

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    value = _number_or_nan(text)
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {MOST:,.0f}")
    return value


def _number_or_nan(text: str) -> float:
    """Return the number that a text is; NaN, which is in no range, if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def model_name_and_path(text: str) -> tuple[str, Path | str]:
    """Parse the value of `--model`, `NAME=PATH`, into name and path or remote address (argparse type)."""
    from controlled_rollout.image.inputs.remote_models import resolve_model_path

    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form NAME=PATH: put the model's name before it, such as prices={path or text}"
        )
    try:
        return name, resolve_model_path(path, Path())
    except ImageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
