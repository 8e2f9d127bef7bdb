"""`python -m controlled_rollout_collector --spools FOLDER --storage ADDRESS`: ships what versions have captured."""

import argparse
import ctypes
import fcntl
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from controlled_rollout_collector.collector import Collector
from controlled_rollout_collector.settings import SpoolSettingError, SpoolSettings
from controlled_rollout_collector.storage import Storage, StorageSettingError, open_storage
from controlled_rollout_collector.supervision import SETTING_ERROR, supervise

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4

log = logging.getLogger("controlled_rollout_collector")


def main() -> int:
    """Parse the command line, and ship until SIGTERM; return the exit code."""
    parent = os.getppid()
    options = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s collector: %(message)s")
    # It logs each request, with its address.
    logging.getLogger("azure").setLevel(logging.WARNING)
    # Other processes of this user, such as versions, must not read this one's environment.
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o077)
    try:
        storage = open_storage(options.storage, os.environ)
    except StorageSettingError as error:
        log.error("%s", error)
        return SETTING_ERROR
    if options.sidecar:
        return supervise(
            lambda is_ending: _ship_until_sigterm(options, storage, is_ending=is_ending), grace_s=options.grace
        )
    if options.exit_with_parent:
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    return _ship_until_sigterm(options, storage, is_ending=options.exit_with_parent and os.getppid() != parent)


def _ship_until_sigterm(options: argparse.Namespace, storage: Storage, *, is_ending: bool) -> int:
    """Ship until SIGTERM, or once if this process has to end already; return the exit code."""
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    if is_ending:
        end.set()
    options.spools.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(options.spools, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.error("another collector ships the spools in %s", options.spools)
        return SETTING_ERROR
    try:
        of_pod = SpoolSettings.from_environment(os.environ) if options.sidecar else None
    except SpoolSettingError as error:
        log.error("%s", error)
        return SETTING_ERROR
    log.info("ships %s to %s every %g s", options.spools, storage, options.interval)
    Collector(
        options.spools,
        storage,
        interval_s=options.interval,
        grace_s=options.grace,
        end=end,
        of_pod=of_pod,
    ).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="controlled_rollout_collector", description=__doc__)
    parser.add_argument(
        "--spools",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="a spool, or a folder with spools in <endpoint>/<version>/<replica>/",
    )
    parser.add_argument(
        "--storage",
        required=True,
        metavar="ADDRESS",
        help="a folder, or https://<account>.blob.core.windows.net/<container>/<prefix>; credentials come from the "
        "environment: AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_SAS_TOKEN, a file named by the same with _FILE, "
        "or what DefaultAzureCredential finds",
    )
    parser.add_argument("--interval", type=float, default=5.0, metavar="SECONDS", help="the time between rounds")
    parser.add_argument(
        "--grace", type=float, default=20.0, metavar="SECONDS", help="how long to go on shipping after SIGTERM"
    )
    parser.add_argument(
        "--sidecar",
        action="store_true",
        help="as in a pod: the replica has ended when this process gets SIGTERM, and until then it ships from a child "
        "process that it starts again",
    )
    parser.add_argument(
        "--exit-with-parent",
        action="store_true",
        help="end as with SIGTERM when the process that started this one ends",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
