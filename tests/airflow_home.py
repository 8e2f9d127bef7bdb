"""A private Airflow home for this test session; import this module before anything of Airflow.

Airflow reads its home when it is imported, so there is one for the whole session: an empty folder, SQLite, no examples.
Processes that the session starts have it too: they may be killed, and would leave one each behind.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["DAGS", "HOME"]

DAGS = Path(__file__).parents[1] / "dags"
INHERITED = "CONTROLLED_ROLLOUT_TESTS_AIRFLOW"

if INHERITED in os.environ:
    HOME = Path(os.environ[INHERITED])
else:
    HOME = Path(tempfile.mkdtemp(prefix="controlled-rollout-airflow-"))
    atexit.register(shutil.rmtree, HOME, ignore_errors=True)

os.environ.update(
    {INHERITED: str(HOME)},
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__PARALLELISM="2",
    AIRFLOW__CORE__DAGS_FOLDER=str(DAGS),
)
