"""What importing the provider costs on top of Airflow's SDK: DAG files are parsed all day."""

import statistics
import subprocess
import sys

ROUNDS = 7
PUBLIC_NAMES = "from controlled_rollout import BuildImageOperator, ControlledRollout, Gate, TreatmentGateSensor"


def seconds_to_import(statements: str) -> float:
    program = f"import time; begun = time.perf_counter(); {statements}; print(time.perf_counter() - begun)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure() -> dict[str, float]:
    """Medians over interleaved rounds of fresh interpreters, in milliseconds."""
    sdk, package, names = [], [], []
    for _ in range(ROUNDS):
        sdk.append(seconds_to_import("import airflow.sdk; from airflow.sdk import BaseOperator, DAG"))
        package.append(
            seconds_to_import(
                "import airflow.sdk; from airflow.sdk import BaseOperator, DAG; import controlled_rollout"
            )
        )
        names.append(
            seconds_to_import(f"import airflow.sdk; from airflow.sdk import BaseOperator, DAG; {PUBLIC_NAMES}")
        )
    base = statistics.median(sdk)
    return {
        "airflow.sdk": 1000 * base,
        "import controlled_rollout, over airflow.sdk": 1000 * (statistics.median(package) - base),
        "its operators and sensor, over airflow.sdk": 1000 * (statistics.median(names) - base),
    }


if __name__ == "__main__":
    for what, milliseconds in measure().items():
        print(f"{what}: {milliseconds:.0f} ms")
