"""The command that scans an image before it is rolled out."""

import argparse
import asyncio
from typing import Final

from controlled_rollout.cli.arguments import Commands, add_workspace_options, duration, workspace_of
from controlled_rollout.cli.registry_users import registry_users
from controlled_rollout.cli.view import print_line
from controlled_rollout.defaults import MAX_DATABASE_AGE
from controlled_rollout.duration import format_duration

__all__ = ["add_to"]

SEVERITIES: Final = ("none", "negligible", "low", "medium", "high", "critical")


def add_to(commands: Commands) -> None:
    """Add the parser of the command `scan`."""
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
    add_workspace_options(scan)
    scan.set_defaults(run=_run_scan)


def _run_scan(options: argparse.Namespace) -> int:
    """Run `controlled-rollout scan`: scan an image for vulnerabilities; return the exit code."""
    from controlled_rollout.image.scan import ScanPolicy, ScanSettings, Severity, scan_image

    policy = ScanPolicy(
        max_severity=Severity.parse(options.max_severity),
        accepted=frozenset(options.accept or ()),
        only_fixed=options.only_fixed,
        max_database_age=options.max_database_age,
    )
    settings = ScanSettings(options.scanner, policy, attach_bill=options.attach_bill)
    users = registry_users()
    asyncio.run(scan_image(workspace_of(options), options.image, settings, credentials=users, progress=print_line))
    return 0
