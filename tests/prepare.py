"""Install and compile what the tests need on this machine, once: `make lab`, which `make test` calls first.

Nothing here has a time limit. For each thing that this machine cannot have, one line names the skipped tests.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.azurite import install_azurite, why_no_azurite
from tests.cluster.lab import LabError, packages, preparation
from tests.cluster.lab.existing import Existing
from tests.needs import is_ci
from tests.spark_server import install_spark, why_no_spark

DEBIAN = packages.CHROMIUM | packages.CLUSTER | packages.POSTGRESQL | packages.PROMETHEUS | packages.SHELLS
PAGE = Path(__file__).parents[1] / "scripts" / "page"


def main() -> int:
    """Prepare the machine; return 1 where a step failed, or where CI cannot run every test."""
    try:
        skipped = list(_prepare())
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    for line in skipped:
        sys.stderr.write(f"lab: {line}\n")
    return 1 if skipped and is_ci() else 0


def _prepare() -> list[str]:
    """Do what can be done, and return a line for each set of tests that will be skipped.

    Raises:
        LabError: A step failed.
    """
    skipped = []
    if why_not := packages.why_not_here(DEBIAN):
        cluster = "" if Existing.of() else " and on a cluster"
        skipped.append(
            "tests of images in registries, with Prometheus, with PostgreSQL, in a browser, in zsh and fish"
            f"{cluster} will be skipped: {why_not}"
        )
    else:
        preparation.install(DEBIAN)
        if Existing.of():
            preparation.make_base_image()
        else:
            preparation.prepare()
        preparation.compile_program("referrers-registry")
    # axe, which looks for what people cannot use, is among the packages that the page is checked with.
    subprocess.run([PAGE, "packages"], check=True)
    preparation.compile_program("grype")
    if shutil.which("trivy"):
        preparation.compile_program("trivy-database")
    if why_not := why_no_azurite():
        skipped.append(f"tests of blob storage will be skipped: {why_not}")
    else:
        install_azurite()
    if why_not := why_no_spark():
        skipped.append(f"tests of summaries by Spark will be skipped: {why_not}")
    else:
        preparation.install(packages.SPARK)
        try:
            install_spark()
        except subprocess.CalledProcessError:
            skipped.append("tests of summaries by Spark will be skipped: it could not be installed, see above why")
    return skipped


if __name__ == "__main__":
    sys.exit(main())
