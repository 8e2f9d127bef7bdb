"""Commands that show an endpoint, call it, print its keys, or delete it."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controlled_rollout.addresses import is_this_machine
from controlled_rollout.cli.arguments import Commands, add_workspace, caller, workspace_of
from controlled_rollout.cli.view import document, print_endpoint, print_json, say
from controlled_rollout.endpoint import VERSION_HEADER, Auth
from controlled_rollout.errors import ControlledRolloutError, EndpointError, TargetUnavailableError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    import httpx

    from controlled_rollout.target.protocol import Keys, Target

__all__ = ["add_to"]

# A little more than a version's default scoring timeout, so that the router answers with 504 first.
SCORE_TIMEOUT_S: Final = 70.0


def add_to(commands: Commands) -> None:
    """Add `status`, `logs`, `keys`, `delete` and `endpoint`."""
    status = commands.add_parser("status", help="show endpoints, versions, traffic and replicas")
    status.add_argument("endpoint", nargs="?", help="only this endpoint")
    status.add_argument("--json", action="store_true", help="for programs: everything that is known")
    add_workspace(status)
    status.set_defaults(run=_status)

    logs = commands.add_parser("logs", help="print the last lines of a version's log")
    logs.add_argument("endpoint")
    logs.add_argument("version")
    logs.add_argument("--tail", type=_lines, default=200, metavar="LINES", help="how many (default %(default)s)")
    add_workspace(logs)
    logs.set_defaults(run=_logs)

    keys = commands.add_parser("keys", help="print an endpoint's two keys, or replace one")
    keys.add_argument("endpoint")
    keys.add_argument(
        "--regenerate", choices=["primary", "secondary"], help="replace this one first; the other keeps working"
    )
    keys.add_argument("--json", action="store_true", help="for programs")
    add_workspace(keys)
    keys.set_defaults(run=_keys)

    delete = commands.add_parser("delete", help="delete an endpoint with its versions and keys")
    delete.add_argument("endpoint")
    delete.add_argument("--reason", default="", help="the reason, for the history")
    delete.add_argument("--yes", action="store_true", required=True, help="really: nothing brings it back")
    add_workspace(delete)
    delete.set_defaults(run=_delete)
    _add_endpoint(commands)


def _add_endpoint(commands: Commands) -> None:
    endpoint = commands.add_parser("endpoint", help="look at an endpoint, or call it")
    actions = endpoint.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="show an endpoint's newest revision and how it is, as JSON")
    show.add_argument("endpoint", metavar="name")
    add_workspace(show)
    show.set_defaults(run=_status, json=True)
    score = actions.add_parser("score", help="send one request to an endpoint, with its key, and print the answer")
    score.add_argument("endpoint", metavar="name")
    score.add_argument("--data", required=True, help="the request's body; @FILE reads it from a file, @- from stdin")
    score.add_argument("--version", help="reach this version, whatever its share of the traffic")
    add_workspace(score)
    score.set_defaults(run=_score)


def _target(options: argparse.Namespace) -> "AbstractAsyncContextManager[Target]":
    from controlled_rollout.target.connect import connect

    return connect(workspace_of(options))


def _status(options: argparse.Namespace) -> int:
    async def show() -> None:
        async with _target(options) as target:
            names = [options.endpoint] if options.endpoint else await target.endpoints()
            endpoints = [(await target.endpoint(name), await target.status(name)) for name in names]
        if options.json:
            documents = [document(endpoint, status) for endpoint, status in endpoints]
            print_json(documents[0] if options.endpoint else documents)
        elif not endpoints:
            say("there are no endpoints")
        for number, (endpoint, status) in enumerate([] if options.json else endpoints):
            if number:
                say("")
            print_endpoint(endpoint, status)

    asyncio.run(show())
    return 0


def _logs(options: argparse.Namespace) -> int:
    async def read() -> str:
        async with _target(options) as target:
            return await target.logs(options.endpoint, options.version, tail=options.tail)

    say(asyncio.run(read()))
    return 0


def _keys(options: argparse.Namespace) -> int:
    async def read() -> "Keys":
        async with _target(options) as target:
            if options.regenerate:
                return await target.regenerate_key(options.endpoint, options.regenerate)
            return await target.keys(options.endpoint)

    keys = asyncio.run(read())
    if options.json:
        print_json(keys.model_dump())
    else:
        say(f"primary    {keys.primary}\nsecondary  {keys.secondary}")
    return 0


def _delete(options: argparse.Namespace) -> int:
    from controlled_rollout.target.protocol import Change

    async def delete() -> None:
        change = Change(who=caller(), why=options.reason or f"delete the endpoint {options.endpoint}")
        async with _target(options) as target:
            await target.delete(options.endpoint, change)

    asyncio.run(delete())
    say(f"endpoint {options.endpoint!r} is deleted")
    return 0


def _score(options: argparse.Namespace) -> int:
    body = _body(options.data)

    async def score() -> "httpx.Response":
        headers = {"Content-Type": "application/json"}
        async with _target(options) as target:
            endpoint = await target.endpoint(options.endpoint)
            if endpoint.auth is Auth.TOKEN:
                raise EndpointError(f"endpoint {endpoint.name!r} asks for a token: only keys are known here")
            if endpoint.auth is Auth.KEY:
                headers["Authorization"] = f"Bearer {(await target.keys(endpoint.name)).primary}"
            url = (await target.status(endpoint.name)).url
        if options.version:
            headers[VERSION_HEADER] = options.version
        return await _post(url, body, headers)

    answer = asyncio.run(score())
    by = answer.headers.get(VERSION_HEADER, "the router")
    sys.stderr.write(f"{answer.status_code} from {by} after {answer.elapsed.total_seconds() * 1000:.0f} ms\n")
    say(answer.text)
    return 0 if answer.is_success else 1


async def _post(url: str, body: bytes, headers: dict[str, str]) -> "httpx.Response":
    import httpx

    try:
        async with httpx.AsyncClient(timeout=SCORE_TIMEOUT_S, trust_env=not is_this_machine(url)) as client:
            return await client.post(url, content=body, headers=headers)
    except httpx.HTTPError as error:
        raise TargetUnavailableError(f"{url} does not answer: {error or type(error).__name__}") from error


def _body(data: str) -> bytes:
    if not data.startswith("@"):
        return data.encode()
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise ControlledRolloutError(f"the request's body cannot be read: {error}") from error


def _lines(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines, from 1 to 100000")
    return int(text)
