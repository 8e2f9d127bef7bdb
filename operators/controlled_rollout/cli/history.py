"""The command `history`: the revisions of an endpoint, who made each, and why."""

import argparse
import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from controlled_rollout.cli.arguments import Commands, add_workspace_options, line_count, workspace_of
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.target.protocol import Revision

__all__ = ["add_to", "changes"]


def add_to(commands: Commands) -> None:
    """Add the parser of `history`."""
    history = commands.add_parser("history", help="show what was changed at an endpoint, when, by whom and why")
    history.add_argument("endpoint", help="the endpoint's name")
    history.add_argument(
        "--tail", type=line_count, default=20, metavar="LINES", help="only the newest (default %(default)s)"
    )
    add_output_option(history)
    add_workspace_options(history)
    history.set_defaults(run=_run_history)


def _run_history(options: argparse.Namespace) -> int:
    """Run `controlled-rollout history`: print the newest revisions, the newest last; return the exit code."""
    from controlled_rollout.target.connect import connect

    async def read_history() -> "Sequence[Revision]":
        """Return the endpoint's revisions from the target, oldest first."""
        async with connect(workspace_of(options)) as target:
            revisions = await target.history(options.endpoint)
            if not revisions:
                await target.endpoint(options.endpoint)  # raises, and says that there is none
            return revisions

    shown = changes(asyncio.run(read_history()))[-options.tail :]
    show(options, shown, _lines(shown))
    return ExitCode.DONE


def changes(revisions: "Sequence[Revision]") -> list[dict[str, Any]]:
    """Return what each revision has changed, as JSON values, oldest first. Pure.

    Args:
        revisions: The endpoint's revisions, oldest first; of the first one, all that it has is a change.
    """
    pairs = pairwise([None, *(revision.endpoint for revision in revisions)])
    return [
        {
            "revision": revision.number,
            "created": revision.created.isoformat(),
            "who": revision.change.who,
            "reason": revision.change.reason,
            "traffic": after.effective_traffic() if after else {},
            "changes": _differences(before, after) if after else [],
        }
        for revision, (before, after) in zip(revisions, pairs, strict=True)
    ]


def _differences(before: "Endpoint | None", after: "Endpoint") -> list[str]:
    """Return what differs between two revisions of an endpoint, a few words each."""
    old = before.versions if before else {}
    shares_before, shares = (before.effective_traffic() if before else {}), after.effective_traffic()
    found = [f"{name} created" for name in after.versions if name not in old]
    found += [f"{name} deleted" for name in old if name not in after.versions]
    for name, version in after.versions.items():
        if version.is_control and not (name in old and old[name].is_control):
            found.append(f"{name} is control")
        if shares[name] != shares_before.get(name, 0.0):
            found.append(f"{name} {shares_before.get(name, 0.0):g} → {shares[name]:g} %")
        if name in old:
            fields = type(version).model_fields
            unsaid = ("traffic_percentile", "is_control", "is_default", "type")
            found += [
                f"{name}.{field}"
                for field in fields
                if field not in unsaid and getattr(version, field) != getattr(old[name], field)
            ]
    return found


def _lines(shown: list[dict[str, Any]]) -> list[str]:
    """Return the changes as lines, for each: number, time and author; below what it has changed, and why."""
    lines = []
    for change in shown:
        time = datetime.fromisoformat(change["created"]).astimezone(UTC)
        lines.append(f"{change['revision']:>4}  {time:%Y-%m-%d %H:%M:%S} UTC  {change['who']}")
        lines += [f"      {text}" for text in (", ".join(change["changes"]), change["reason"]) if text]
    return lines
