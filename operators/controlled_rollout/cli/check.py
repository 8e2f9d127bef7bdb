"""The command `check`: does everything that a workspace needs answer, from here and from its versions' network?"""

import argparse
import asyncio

from controlled_rollout.cli.arguments import Commands, add_workspace_options, workspace_of
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, show
from controlled_rollout.cli.progress import at_work
from controlled_rollout.cli.registry_users import registry_users

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parser of `check`."""
    check = commands.add_parser(
        "check", help="check that everything a workspace needs answers, and say what to open for what does not"
    )
    check.add_argument(
        "endpoint",
        nargs="?",
        default="",
        metavar="name",
        help="on Kubernetes: ask from a pod with the network identity of a version of this endpoint, too",
    )
    check.add_argument("--version", default="", help="the version whose identity that is (default: control)")
    check.add_argument(
        "--to",
        metavar="URL",
        action="append",
        default=[],
        help="a server that a script calls, as https://host/path or tcp://host:port; may be repeated",
    )
    add_output_option(check)
    add_workspace_options(check)
    check.set_defaults(run=_run_check)


def _run_check(options: argparse.Namespace) -> int:
    """Run `controlled-rollout check`: print a line per check; return 1 if something that is needed fails."""
    from controlled_rollout.checks.connectivity import CheckScope, check_connectivity
    from controlled_rollout.checks.result import as_json, failures, results_table

    workspace = workspace_of(options)
    scope = CheckScope(options.endpoint, options.version, tuple(options.to))
    with at_work("ask every server"):
        results = asyncio.run(check_connectivity(workspace, registry_users(), scope))
    lines = results_table(results).splitlines()
    if workspace.target == "kubernetes" and not options.endpoint:
        lines.append("not checked from the pods: name an endpoint for that")
    if workspace.target == "local" and (options.endpoint or options.version):
        lines.append("a local version has the network of this machine: endpoint and version were not looked at")
    show(options, as_json(results), lines)
    return ExitCode.FAILED if failures(results) else ExitCode.DONE
