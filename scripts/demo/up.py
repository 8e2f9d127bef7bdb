"""`python -m scripts.demo.up`, which `make up` runs: leaves a local workspace and Airflow running."""

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ControlledRolloutError
from scripts.demo.airflow import HOST, REPOSITORY, Airflow
from scripts.demo.errors import DemoError
from scripts.demo.local_stack import ALL_PARTS, LocalStack

FOLDER: Final = REPOSITORY / ".work" / "up"
AIRFLOW_PORT: Final = 8080
ROUTER_PORT: Final = 8088
DAG_ID: Final = "retrain_and_deploy"


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a local workspace and Airflow unless they run; return 0 if both run afterwards."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.up", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="the folder of the workspace and Airflow (default %(default)s)"
    )
    parser.add_argument("--port", type=int, default=AIRFLOW_PORT, help="Airflow's port (default %(default)s)")
    parser.add_argument("--router-port", type=int, default=ROUTER_PORT, help="the router's (default %(default)s)")
    options = parser.parse_args(arguments)
    stack = LocalStack(options.folder)
    try:
        with stack.exclusive():
            return asyncio.run(_up(stack, options.port, options.router_port))
    except (DemoError, ControlledRolloutError) as error:
        print(f"up: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("up: stopped; everything it started has ended", file=sys.stderr)
        return 130


async def _up(stack: LocalStack, port: int, router_port: int) -> int:
    if set(running := await stack.running()) >= ALL_PARTS:
        print(f"already running since an earlier make up: {', '.join(running)}; make down ends it")
        return 0
    # An earlier start may have been incomplete.
    await stack.end()
    for part, port_of_part in (("Airflow", port), ("the router", router_port)):
        _check_free(part, port_of_part)
    stack.prepare()
    print("starting the local workspace and Airflow", flush=True)
    try:
        airflow = stack.start_airflow(port=port, schedules=True)
        await stack.start_workspace(port=router_port)
        await airflow.wait_until_healthy(stack.processes, dag_id=DAG_ID)
    except BaseException:
        await stack.end()
        raise
    await airflow.close()
    _print_addresses(airflow, stack, router_port)
    return 0


def _check_free(part: str, port: int) -> None:
    with socket.socket() as probe:
        # Like a server: a port with connections that are closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoError(
                f"port {port} of {HOST}, which {part} should have, cannot be used ({error.strerror}): end what "
                f"listens there (ss -ltnp 'sport = :{port}' names it), or give another port to "
                "`.venv/bin/python -m scripts.demo.up`"
            ) from error


def _print_addresses(airflow: Airflow, stack: LocalStack, router_port: int) -> None:
    print(
        f"Airflow:   {airflow.url}   user admin, password in {airflow.password_file}\n"
        f"endpoints: http://{HOST}:{router_port}/api/v1/service/<endpoint>/score   "
        f"(.venv/bin/controlled-rollout local status --root {stack.workspace.root})\n"
        f"logs:      {stack.logs}\n"
        f"To begin: un-pause the DAG {DAG_ID} in the UI and trigger it. make down ends all of this."
    )


if __name__ == "__main__":
    sys.exit(main())
