"""Commands that build an image, and scan it before it is rolled out."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.cli.arguments import (
    Commands,
    add_workspace_options,
    caller,
    duration,
    model_name_and_path,
    workspace_of,
)
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, is_table, show
from controlled_rollout.cli.progress import at_work
from controlled_rollout.cli.registry_users import registry_users
from controlled_rollout.cli.view import print_line, print_progress
from controlled_rollout.defaults import MAX_DATABASE_AGE
from controlled_rollout.duration import format_duration
from controlled_rollout.workspace import Workspace

__all__ = ["add_to", "build_reference"]

SEVERITIES: Final = ("none", "negligible", "low", "medium", "high", "critical")


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `build` and `scan`."""
    build = commands.add_parser(
        "build", help="build a project folder's image, or find the one that exists, and print its reference"
    )
    build.add_argument("folder", type=Path, help="the folder with score.py and its environment file")
    build.add_argument("--name", required=True, help="the image's name, such as models/digits")
    build.add_argument(
        "--model",
        metavar="NAME=PATH",
        type=model_name_and_path,
        action="append",
        default=[],
        help="a model's files, or its address; may be repeated",
    )
    build.add_argument("--environment", metavar="FILE", help="environment file (default: the one in the folder)")
    build.add_argument("--entry-script", default="score.py", help="entry script in the folder (default %(default)s)")
    add_output_option(build)
    add_workspace_options(build)
    build.set_defaults(run=_run_build)
    scan = commands.add_parser(
        "scan", help="scan an image for known vulnerabilities; exit code 1 if it must not be rolled out"
    )
    scan.add_argument("image", metavar="NAME@sha256:DIGEST", help="the image, by digest")
    scan.add_argument(
        "--max-severity",
        choices=SEVERITIES,
        default="medium",
        help="the worst severity that may pass (default %(default)s); findings without a rating never pass",
    )
    scan.add_argument(
        "--accept",
        metavar="NAME",
        action="append",
        help="a vulnerability, or a package that cannot be scanned, that was judged and may pass; may be repeated",
    )
    scan.add_argument("--only-fixed", action="store_true", help="let findings without a fixed version pass")
    scan.add_argument("--scanner", choices=["trivy", "grype"], help="default: the workspace's")
    scan.add_argument(
        "--max-database-age",
        type=duration,
        default=MAX_DATABASE_AGE,
        metavar="DURATION",
        help=f"how old the scanner's database may be, such as '12 h' (default {format_duration(MAX_DATABASE_AGE)})",
    )
    scan.add_argument(
        "--attach-bill",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="attach the bill of materials (CycloneDX) to an image in a registry, whatever is found (default: yes)",
    )
    add_output_option(scan)
    add_workspace_options(scan)
    scan.set_defaults(run=_run_scan)


def _run_build(options: argparse.Namespace) -> int:
    """Run `controlled-rollout build`: build the image, print its reference; return the exit code."""
    reference = build_reference(
        workspace_of(options),
        options.folder,
        name=options.name,
        environment=options.environment,
        entry_script=options.entry_script,
        models=options.model,
    )
    show(options, {"image": reference}, [reference])
    return ExitCode.DONE


def build_reference(
    workspace: Workspace,
    folder: Path,
    *,
    name: str,
    environment: str | None,
    entry_script: str,
    models: Sequence[tuple[str, Path | str]],
) -> str:
    """Build a project folder's image, or find the one that exists; return its reference.

    Args:
        workspace: Where it is built.
        folder: The project folder.
        name: The image's name.
        environment: The environment's file; None for the one in the folder.
        entry_script: The entry script, in the folder.
        models: Names and places of the models.

    Raises:
        ControlledRolloutError: It cannot be built.
    """
    from controlled_rollout.image import ModelSource, build_image

    built = build_image(
        workspace,
        folder,
        name=name,
        environment=environment,
        entry_script=entry_script,
        models=[ModelSource(model, path) for model, path in models],
        credentials=registry_users() if workspace.registry else None,
        owner=caller(workspace),
        # A shell reads the reference from stdout.
        progress=print_progress,
    )
    with at_work(f"build {name}"):
        return str(asyncio.run(built))


def _run_scan(options: argparse.Namespace) -> int:
    """Run `controlled-rollout scan`: scan an image for vulnerabilities; return the exit code."""
    from controlled_rollout.image.scan import ScanDecision, ScanPolicy, ScanSettings, Severity, scan_image

    policy = ScanPolicy(
        max_severity=Severity.parse(options.max_severity),
        accepted=frozenset(options.accept or ()),
        only_fixed=options.only_fixed,
        max_database_age=options.max_database_age,
    )
    settings = ScanSettings(options.scanner, policy, attach_bill=options.attach_bill)
    decisions: list[ScanDecision] = []
    scan = scan_image(
        workspace_of(options),
        options.image,
        settings,
        credentials=registry_users(),
        progress=print_line if is_table(options) else print_progress,
        on_decision=decisions.append,
    )
    try:
        with at_work(f"scan {options.image}"):
            asyncio.run(scan)
    finally:
        # As text it was told line by line, and an image that is blocked by the error.
        for decision in decisions:
            show(options, {"image": options.image, **decision.document()}, [])
    return 0
