"""A Spark Connect server on a port of its own: Spark itself, which is large, is installed from PyPI once."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.lab import packages
from tests.needs import skip

VERSION = "4.2.0"
REQUIREMENTS = (
    f"pyspark=={VERSION} --hash=sha256:5ad689d53570ee1674193fd4f9bda065f0db3be9363a27d2a3406cc457b70b61\n"
    "py4j==0.10.9.9 --hash=sha256:c7c26e4158defb37b0bb124933163641a2ff6e3a3913f7811b0ddbe07ed61533\n"
)
# On an idle machine it takes 10.
DEADLINE_S = 180.0
MEMORY = "1g"
# Java that is not optimised begins sooner, and tests are short.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
STARTED = re.compile(r"Spark Connect server started at: 127\.0\.0\.1:(\d+)")


def why_no_spark() -> str | None:
    """Return why Spark cannot run on this machine; None where it can."""
    if shutil.which("java"):
        return None
    return packages.why_not_here(packages.SPARK)


def install_spark() -> None:
    """Install Spark from PyPI beside this project's environment, unless it is there.

    Raises:
        subprocess.CalledProcessError: It could not be installed.
    """
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        sys.stderr.write(f"lab: installing Spark {VERSION} from PyPI: 430 MB\n")
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        options = ["--quiet", "--no-cache", "--no-deps", "--require-hashes", "--python", sys.executable]
        options += ["--target", str(unfinished), "--requirement", "-"]
        subprocess.run(
            [Path(sys.executable).with_name("uv"), "pip", "install", *options],
            input=REQUIREMENTS.encode(),
            check=True,
        )
        unfinished.rename(folder)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "controlled-rollout" / f"spark-{VERSION}"


def _environment() -> dict[str, str]:
    """Return the environment of a Spark on this machine, whatever this process's own says of others."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    return own | {"SPARK_HOME": str(_folder() / "pyspark"), "SPARK_LOCAL_IP": "127.0.0.1"}


def classic_environment() -> dict[str, str]:
    """Return the environment of a process whose PySpark is Spark itself; skip the test where it is not installed."""
    if why_not := why_no_spark() or (None if _folder().exists() else "Spark is not installed: run `make lab`"):
        skip(why_not)
    repository = Path(__file__).parent.parent
    paths = [_folder(), repository, repository / "operators", repository / "docker" / "collector"]
    return _environment() | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


@contextmanager
def serving_spark(folder: Path, java: str = JAVA_OPTIONS) -> Iterator[str]:
    """Run a Spark Connect server in the block, and give its address; skip the test where Spark is not installed.

    Args:
        folder: Where it writes.
        java: Options of Java.
    """
    home = _folder() / "pyspark"
    if why_not := why_no_spark() or (None if home.exists() else "Spark is not installed: run `make lab`"):
        skip(why_not)
    settings = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": "0",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": java,
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(folder / "scratch"),
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.ui.enabled": "false",
    }
    options = [argument for name, value in settings.items() for argument in ("--conf", f"{name}={value}")]
    command = ["--class", SERVER, "--master", "local[2]", "--driver-memory", MEMORY, *options, "spark-internal"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [home / "bin" / "spark-submit", *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=_environment(), start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + DEADLINE_S
        while not (started := STARTED.search((folder / "log").read_text())):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-4_000:]
            time.sleep(0.1)
        yield f"sc://127.0.0.1:{started[1]}"
    finally:
        # The script that starts Java is replaced by it; what it has started is in its group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
