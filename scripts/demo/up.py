"""`python -m scripts.demo.up`: what `make up` runs. Leaves a local workspace and Airflow running to play with."""

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ControlledRolloutError
from scripts.demo.airflow import HOST, REPOSITORY, Airflow
from scripts.demo.problem import DemoError
from scripts.demo.stage import EVERYTHING, Stage

FOLDER: Final = REPOSITORY / ".work" / "up"
AIRFLOW_PORT: Final = 8080
ROUTER_PORT: Final = 8088
DAG_ID: Final = "retrain_and_deploy"


def main(arguments: Sequence[str] | None = None) -> int:
    """Start what is not running yet; return 0 if all of it runs then."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.up", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything is (default %(default)s)")
    parser.add_argument("--port", type=int, default=AIRFLOW_PORT, help="Airflow's port (default %(default)s)")
    parser.add_argument("--router-port", type=int, default=ROUTER_PORT, help="the router's (default %(default)s)")
    options = parser.parse_args(arguments)
    stage = Stage(options.folder)
    try:
        with stage.alone():
            return asyncio.run(_up(stage, options.port, options.router_port))
    except (DemoError, ControlledRolloutError) as error:
        print(f"up: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("up: stopped; everything it started has ended", file=sys.stderr)
        return 130


async def _up(stage: Stage, port: int, router_port: int) -> int:
    if set(running := await stage.running()) >= EVERYTHING:
        print(f"already running since an earlier make up: {', '.join(running)}; make down ends it")
        return 0
    # What an earlier one has left incomplete.
    await stage.end()
    for what, number in (("Airflow", port), ("the router", router_port)):
        _check_free(what, number)
    stage.prepare()
    print("starting the local workspace and Airflow", flush=True)
    try:
        airflow = stage.start_airflow(port=port, schedules=True)
        await stage.start_workspace(port=router_port)
        await airflow.wait_until_healthy(stage.processes, dag_id=DAG_ID)
    except BaseException:
        await stage.end()
        raise
    await airflow.close()
    _tell(airflow, stage, router_port)
    return 0


def _check_free(what: str, port: int) -> None:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoError(
                f"port {port} of {HOST}, which {what} should have, cannot be used ({error.strerror}): end what "
                f"listens there (ss -ltnp 'sport = :{port}' names it), or give another port to "
                "`.venv/bin/python -m scripts.demo.up`"
            ) from None


def _tell(airflow: Airflow, stage: Stage, router_port: int) -> None:
    print(
        f"Airflow:   {airflow.url}   user admin, password in {airflow.password_file}\n"
        f"endpoints: http://{HOST}:{router_port}/api/v1/service/<endpoint>/score   "
        f"(.venv/bin/controlled-rollout local status --root {stage.workspace.root})\n"
        f"logs:      {stage.logs}\n"
        f"To begin: un-pause the DAG {DAG_ID} in the UI and trigger it. make down ends all of this."
    )


if __name__ == "__main__":
    sys.exit(main())
