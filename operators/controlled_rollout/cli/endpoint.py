"""Commands that show an endpoint, call it, print its keys, or delete it."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.addresses import is_this_machine, transport_for
from controlled_rollout.cli.arguments import (
    Commands,
    add_workspace_options,
    caller,
    duration,
    line_count,
    workspace_of,
)
from controlled_rollout.cli.collected import with_collected
from controlled_rollout.cli.output import add_output_option, is_table, show
from controlled_rollout.cli.view import (
    endpoint_as_json,
    endpoint_lines,
    print_answer,
    print_line,
    print_progress,
    unreadable_as_json,
)
from controlled_rollout.cli.watch import WATCH_INTERVAL, watch
from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import VERSION_HEADER, Auth
from controlled_rollout.errors import (
    ArgumentError,
    ControlledRolloutError,
    DamagedFileError,
    EndpointNotFoundError,
    TargetUnavailableError,
)
from controlled_rollout.tokens import DEFAULT_LIFETIME
from controlled_rollout.visible_text import visible_text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    import httpx

    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.rollout import Rollout
    from controlled_rollout.target.protocol import EndpointStatus, Keys, Revision, Target
    from controlled_rollout.tokens import Token
    from controlled_rollout.workspace import Workspace

__all__ = ["add_to", "readable_endpoint"]

# A little more than a version's default scoring timeout, so that the router answers with 504 first.
SCORE_TIMEOUT_S: Final = 70.0
ACTIONS_OF_KEYS: Final = ("token", "rotate")


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `status`, `logs`, `keys`, `delete` and `endpoint`."""
    status = commands.add_parser("status", help="show endpoints, versions, traffic and replicas")
    status.add_argument("endpoint", nargs="?", help="only this endpoint")
    status.add_argument("--watch", action="store_true", help="show it again whenever it changes, until Ctrl-C")
    status.add_argument(
        "--interval",
        type=duration,
        default=WATCH_INTERVAL,
        metavar="DURATION",
        help=f"with --watch: the time between two looks (default {format_duration(WATCH_INTERVAL)})",
    )
    add_output_option(status)
    add_workspace_options(status)
    status.set_defaults(run=_run_status)

    logs = commands.add_parser("logs", help="print the last lines of a version's log")
    logs.add_argument("endpoint")
    logs.add_argument("version")
    logs.add_argument("--tail", type=line_count, default=200, metavar="LINES", help="how many (default %(default)s)")
    add_workspace_options(logs)
    logs.set_defaults(run=_run_logs)

    keys = commands.add_parser(
        "keys",
        help="print an endpoint's two keys, or replace one; give a token, or rotate what signs tokens",
        description="Without an action: print the two keys of an endpoint, or replace one of them. token: print a new "
        "token for callers of an endpoint whose auth is token. rotate: sign tokens with the next key; the key of "
        "before the last rotation is refused from now on, and nobody else is interrupted.",
    )
    keys.add_argument("action", nargs="?", choices=ACTIONS_OF_KEYS, help="for an endpoint whose auth is token")
    keys.add_argument("endpoint")
    keys.add_argument(
        "--lifetime",
        type=duration,
        metavar="DURATION",
        help=f"how long the token is accepted, 1 min to 24 h (default {format_duration(DEFAULT_LIFETIME)})",
    )
    keys.add_argument(
        "--regenerate", choices=["primary", "secondary"], help="replace this one first; the other keeps working"
    )
    add_output_option(keys)
    add_workspace_options(keys)
    keys.set_defaults(run=_run_keys)

    delete = commands.add_parser("delete", help="delete an endpoint with its versions and keys")
    delete.add_argument("endpoint")
    delete.add_argument("--reason", default="", help="the reason, for the history")
    delete.add_argument("--yes", action="store_true", required=True, help="really: nothing brings it back")
    add_output_option(delete)
    add_workspace_options(delete)
    delete.set_defaults(run=_run_delete)
    _add_endpoint_command(commands)


def _add_endpoint_command(commands: Commands) -> None:
    """Add the parser of `endpoint` with its actions `show` and `score`."""
    endpoint = commands.add_parser("endpoint", help="look at an endpoint, or call it")
    actions = endpoint.add_subparsers(title="actions", metavar="ACTION", required=True)
    shown = actions.add_parser("show", help="show an endpoint's newest revision and how it is, as JSON")
    shown.add_argument("endpoint", metavar="name")
    add_workspace_options(shown)
    shown.set_defaults(run=_run_show)
    score = actions.add_parser(
        "score", help="send one request to an endpoint, with a key or a token, and print the answer"
    )
    score.add_argument("endpoint", metavar="name")
    score.add_argument("--data", required=True, help="the request's body; @FILE reads it from a file, @- from stdin")
    score.add_argument("--version", help="reach this version, whatever its share of the traffic")
    add_workspace_options(score)
    score.set_defaults(run=_run_endpoint_score)


def _connect_target(options: argparse.Namespace) -> "AbstractAsyncContextManager[Target]":
    """Return a context manager that connects to the target of the command's workspace."""
    from controlled_rollout.target.connect import connect

    return connect(workspace_of(options))


def _run_status(options: argparse.Namespace) -> int:
    """Run `controlled-rollout status`: print endpoints, versions and traffic; return the exit code."""
    if options.watch:
        asyncio.run(watch(options, lambda: _read_status(options), interval=options.interval))
    document, lines = asyncio.run(_read_status(options))
    show(options, document, lines)
    return 0


async def _read_status(options: argparse.Namespace) -> tuple[Any, list[str]]:
    """Read the endpoints and their status from the target; return them as JSON values and as lines of text."""
    workspace = workspace_of(options)
    async with _connect_target(options) as target:
        # Not `or`: an empty name is a mistake, such as a variable of a shell that is not set.
        names = await target.endpoints() if options.endpoint is None else [options.endpoint]
        histories = [await _readable_history(target, name) for name in names]
        statuses = [await target.status(name) for name in names]
    # All at once: a storage that does not answer is waited for once, and not once for each endpoint.
    shown = await asyncio.gather(
        *(_shown(workspace, history, status) for history, status in zip(histories, statuses, strict=True))
    )
    documents = [document for document, _ in shown]
    lines = [line for _, block in shown for line in (*block, "")]
    return documents if options.endpoint is None else documents[0], lines[:-1] or ["there are no endpoints"]


async def _shown(
    workspace: "Workspace", history: "Sequence[Revision]", status: "EndpointStatus"
) -> tuple[Any, list[str]]:
    """Return an endpoint as JSON values and as lines of text, with what its storage and its record say.

    Args:
        workspace: Where it is.
        history: Its revisions, oldest first; none if they cannot be read.
        status: Its status, as the target gives it.
    """
    from controlled_rollout.checks.certificate import with_certificate
    from controlled_rollout.view.reading import KnownEndpoint, overview_of

    endpoint = history[-1].endpoint if history else None
    status = await with_collected(workspace, endpoint, await with_certificate(workspace, status))
    if not history:
        return unreadable_as_json(status), endpoint_lines(endpoint, status)
    revisions = KnownEndpoint()
    revisions.keep(history)
    overview = await overview_of(workspace, status, revisions)
    if revisions.record_problem:
        warning = f"what its rollout waits for is not known: {revisions.record_problem}"
        status = status.model_copy(update={"warnings": (*status.warnings, warning)})
        overview = overview.model_copy(update={"warnings": (*overview.warnings, visible_text(warning))})
    return overview.model_dump(mode="json"), endpoint_lines(endpoint, status, overview)


async def _readable_history(target: "Target", name: str) -> "Sequence[Revision]":
    """Return an endpoint's revisions, oldest first; none if a file cannot be read, which the endpoint's status says."""
    try:
        return await target.history(name)
    except DamagedFileError:
        return []


def _run_show(options: argparse.Namespace) -> int:
    """Run `controlled-rollout endpoint show`: print an endpoint's newest revision and status as JSON."""

    async def read() -> dict[str, Any]:
        """Return both from the target."""
        async with _connect_target(options) as target:
            return endpoint_as_json(
                await readable_endpoint(target, options.endpoint), await target.status(options.endpoint)
            )

    show(argparse.Namespace(output="json"), asyncio.run(read()), [])
    return 0


async def readable_endpoint(target: "Target", name: str) -> "Endpoint | None":
    """Return an endpoint's newest revision; None if its file cannot be read, which the endpoint's status explains."""
    try:
        return await target.endpoint(name)
    except DamagedFileError:
        return None


def _run_logs(options: argparse.Namespace) -> int:
    """Run `controlled-rollout logs`: print the last lines of a version's log; return the exit code."""

    async def read_log() -> str:
        """Return the last lines of the version's log from the target."""
        async with _connect_target(options) as target:
            log = await target.logs(options.endpoint, options.version, tail=options.tail)
            if not log:  # what a deleted version wrote can be read; a name that was mistyped has nothing to read
                (await target.endpoint(options.endpoint)).version(options.version)
            return log

    print_line(asyncio.run(read_log()))
    return 0


def _run_keys(options: argparse.Namespace) -> int:
    """Run `controlled-rollout keys`: print an endpoint's keys, one replaced if requested; return the exit code."""
    if options.action is None and options.lifetime is not None:
        raise ArgumentError("--lifetime is for tokens: `controlled-rollout keys token ENDPOINT`")
    if options.action is not None and options.regenerate:
        raise ArgumentError(f"--regenerate is for keys, and `keys {options.action}` for tokens: give one of them")
    if options.action == "token":
        return _print_token(options)
    if options.action == "rotate":
        return _rotate_signing_keys(options)

    async def read_keys() -> "Keys":
        """Return the endpoint's keys from the target, after replacing one with `--regenerate`."""
        async with _connect_target(options) as target:
            if options.regenerate:
                return await target.regenerate_key(options.endpoint, options.regenerate)
            return await target.keys(options.endpoint)

    try:
        keys = asyncio.run(read_keys())
    except EndpointNotFoundError as error:
        if options.endpoint in ACTIONS_OF_KEYS:
            raise ArgumentError(f"`keys {options.endpoint}` needs the name of an endpoint after it: {error}") from error
        raise
    show(options, keys.model_dump(mode="json"), [f"primary    {keys.primary}", f"secondary  {keys.secondary}"])
    return 0


def _print_token(options: argparse.Namespace) -> int:
    """Run `controlled-rollout keys token`: print a new token for an endpoint's callers; return the exit code."""
    # Not `or`: a length of 0 is refused, as others that are too short are.
    lifetime = DEFAULT_LIFETIME if options.lifetime is None else options.lifetime

    async def read_token() -> "Token":
        """Return a new token from the target."""
        async with _connect_target(options) as target:
            return await target.token(options.endpoint, lifetime=lifetime)

    token = asyncio.run(read_token())
    if is_table(options):
        sys.stderr.write(f"get another one by {token.refresh_by:%H:%M:%S %Z}; it expires at {token.expires:%H:%M:%S}\n")
    # As text only the token, so that a shell can put it into a header.
    show(options, token.model_dump(mode="json"), [token.token])
    return 0


def _rotate_signing_keys(options: argparse.Namespace) -> int:
    """Run `controlled-rollout keys rotate`: sign tokens with the next key from now on; return the exit code."""
    if options.lifetime is not None:
        raise ArgumentError("--lifetime is for tokens: `controlled-rollout keys token ENDPOINT`")

    async def rotate() -> None:
        """Rotate the signing keys on the target."""
        async with _connect_target(options) as target:
            await target.rotate_signing_keys(options.endpoint)

    asyncio.run(rotate())
    sentence = (
        f"endpoint {options.endpoint!r} signs tokens with its next key; tokens of before go on working, until the next "
        "rotation or their own end"
    )
    show(options, {"endpoint": options.endpoint}, [sentence])
    return 0


def _run_delete(options: argparse.Namespace) -> int:
    """Run `controlled-rollout delete`: delete an endpoint with its versions and keys; return the exit code."""
    from controlled_rollout.target.protocol import Change

    author, reason = caller(workspace_of(options)), options.reason or f"delete the endpoint {options.endpoint}"

    warn = print_line if is_table(options) else print_progress

    async def delete_endpoint() -> "tuple[bool, Rollout | None]":
        """Delete the endpoint on the target, with author and reason for the history.

        Returns:
            Whether there was one, and the rollout that this has ended.
        """
        change = Change(who=author, reason=reason)
        async with _connect_target(options) as target:
            existed = options.endpoint in await target.endpoints()
            endpoint = await readable_endpoint(target, options.endpoint) if existed else None
            rollout = endpoint.rollout if endpoint is not None else None
            if rollout is not None:
                warn(f"warning: this ends the rollout of {rollout.version!r} by {rollout.owner}")
            # Also if not: what an interrupted deletion has left goes now.
            await target.delete(options.endpoint, change)
            return existed, rollout

    existed, rollout = asyncio.run(delete_endpoint())
    ended = {"version": rollout.version, "owner": rollout.owner} if rollout is not None else None
    sentence = f"endpoint {options.endpoint!r} is deleted"
    if not existed:
        sentence = f"there is no endpoint {options.endpoint!r}: nothing to delete"
    show(options, {"endpoint": options.endpoint, "deleted": existed, "ended_rollout": ended}, [sentence])
    return 0


def _run_endpoint_score(options: argparse.Namespace) -> int:
    """Run `controlled-rollout endpoint score`: send one request, print the answer; return the exit code."""
    from controlled_rollout.target.authority import endpoint_authority, tls_context

    body, workspace = _request_body(options.data), workspace_of(options)

    async def send_request() -> "httpx.Response":
        """Look up the endpoint's URL and key, send the request, and return the response."""
        headers = {"Content-Type": "application/json"}
        async with _connect_target(options) as target:
            endpoint = await target.endpoint(options.endpoint)
            if endpoint.auth is Auth.TOKEN:
                headers["Authorization"] = f"Bearer {(await target.token(endpoint.name)).token}"
            if endpoint.auth is Auth.KEY:
                headers["Authorization"] = f"Bearer {(await target.keys(endpoint.name)).primary}"
            url = (await target.status(endpoint.name)).url
        if "Authorization" in headers and url.startswith("http:") and not is_this_machine(url):
            sys.stderr.write(
                f"the {endpoint.auth} is sent in clear: {url} is plain http, and the Gateway has no https listener\n"
            )
        if options.version:
            headers[VERSION_HEADER] = options.version
        authority = endpoint_authority(workspace)
        return await _post(url, body, headers, None if authority is None else tls_context(authority))

    answer = asyncio.run(send_request())
    by = answer.headers.get(VERSION_HEADER, "the router")
    sys.stderr.write(
        f"{answer.status_code} from {visible_text(by)} after {answer.elapsed.total_seconds() * 1000:.0f} ms\n"
    )
    print_answer(answer.text)
    return 0 if answer.is_success else 1


async def _post(url: str, body: bytes, headers: dict[str, str], tls: "ssl.SSLContext | None") -> "httpx.Response":
    """Send an HTTP POST request and return the response; raise TargetUnavailableError if there is none."""
    import httpx

    try:
        transport = transport_for(url, tls)
        async with httpx.AsyncClient(timeout=SCORE_TIMEOUT_S, transport=transport, verify=tls or True) as client:
            return await client.post(url, content=body, headers=headers)
    except httpx.HTTPError as error:
        raise TargetUnavailableError(f"{url} does not answer: {str(error) or type(error).__name__}") from error


def _request_body(data: str) -> bytes:
    """Return the request body that `--data` gives: the text itself, the content of `@FILE`, or stdin for `@-`."""
    if not data.startswith("@"):
        return data.encode()
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise ControlledRolloutError(f"the request's body cannot be read: {error}") from error
