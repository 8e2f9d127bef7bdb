"""The command `replicas`: how many replicas a load needs."""

import argparse

from controlled_rollout.cli.arguments import Commands, positive_number
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, show
from controlled_rollout.version import Version

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parser of `replicas`."""
    fields = Version.model_fields
    replicas = commands.add_parser(
        "replicas",
        help="compute how many replicas a load needs",
        description="Rounded up: requests per second x seconds per request / utilization / requests at once.",
    )
    replicas.add_argument("--requests-per-second", type=positive_number, required=True, metavar="NUMBER")
    replicas.add_argument(
        "--request-time-ms", type=positive_number, required=True, metavar="NUMBER", help="the mean time of a request"
    )
    replicas.add_argument(
        "--target-utilization",
        type=_per_cent,
        default=fields["autoscale_target_utilization"].default,
        metavar="PERCENT",
        help="how busy a replica should be (default %(default)s)",
    )
    for option, field, purpose in (
        ("--max-concurrent-requests", "replica_max_concurrent_requests", "what one worker answers at once"),
        ("--worker-count", "worker_count", "the workers of a replica"),
    ):
        replicas.add_argument(
            option,
            type=_count,
            default=fields[field].default,
            metavar="NUMBER",
            help=f"{purpose} (default %(default)s)",
        )
    add_output_option(replicas)
    replicas.set_defaults(run=_run_replicas)


def _run_replicas(options: argparse.Namespace) -> int:
    """Run `controlled-rollout replicas`: print the number; return the exit code."""
    from controlled_rollout.sizing import replicas_for

    slots = options.max_concurrent_requests * options.worker_count
    load = f"{options.requests_per_second:g} requests/s of {options.request_time_ms:g} ms"
    number = replicas_for(
        options.requests_per_second,
        options.request_time_ms / 1000,
        target_utilisation=options.target_utilization / 100,
        slots=slots,
    )
    document = {
        "replicas": number,
        "requests_per_second": options.requests_per_second,
        "request_time_ms": options.request_time_ms,
        "target_utilization": options.target_utilization,
        "slots_per_replica": slots,
    }
    noun = "replica" if number == 1 else "replicas"
    at_once = "1 request" if slots == 1 else f"{slots} requests"
    text = f"{number} {noun}: {load}, {at_once} at once a replica, {options.target_utilization:g} % busy"
    show(options, document, [text])
    return ExitCode.DONE


def _per_cent(text: str) -> float:
    """Parse an option's value as per cent, above 0 and up to 100 (argparse type)."""
    value = positive_number(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 100 %")
    return value


def _count(text: str) -> int:
    """Parse an option's value as a whole number from 1 to 1000 (argparse type)."""
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000")
    return int(text)
