"""Default values that operators, the task group, the engine and the command line share: one default for one thing."""

from datetime import timedelta
from typing import Final

__all__ = [
    "BAKE",
    "CONFLICT_TIMEOUT",
    "DECISION_TIMEOUT",
    "DEFAULT_CONNECTION",
    "KEEP_WARM",
    "LOOK_INTERVAL",
    "MAX_DATABASE_AGE",
    "READY_TIMEOUT",
    "RETIRE_TIMEOUT",
    "ROLL_BACK_TIMEOUT",
    "SCAN_TIMEOUT",
    "SERVED_TIMEOUT",
    "SILENCE",
    "STEPS",
]

# The connection of tasks that name none; where there is none of that name, it is the local workspace.
DEFAULT_CONNECTION: Final = "controlled_rollout_default"
# How long a new version may take to become ready.
READY_TIMEOUT: Final = timedelta(minutes=10)
# How long a version may take to be large enough for its share, and the router to serve the new split.
SERVED_TIMEOUT: Final = timedelta(minutes=2)
# How long a run's step that gives its version more traffic goes on trying while target or record do not answer: if it
# failed, a good version would be rolled back because of an outage.
OUTAGE_TIMEOUT: Final = timedelta(hours=1)
# After which time without a look a treatment that has traffic is taken back.
SILENCE: Final = timedelta(minutes=30)
# How long the deletion of a version may take.
RETIRE_TIMEOUT: Final = timedelta(minutes=5)
# How long a roll-back goes on trying while the target, or the router behind it, does not do it.
ROLL_BACK_TIMEOUT: Final = timedelta(hours=1)
# How long to wait, if asked to, while another run holds the endpoint.
CONFLICT_TIMEOUT: Final = timedelta(hours=1)
# How long a former control stays, ready to take the traffic back.
KEEP_WARM: Final = timedelta(days=1)

# A treatment's per cent of the traffic at each step of a rollout.
STEPS: Final = (10.0, 50.0)
# The least time at each step, the most, and the time between two looks.
BAKE: Final = timedelta(minutes=10)
DECISION_TIMEOUT: Final = timedelta(days=1)
LOOK_INTERVAL: Final = timedelta(minutes=1)

# How old a vulnerability scanner's database may be, and how long each scanning program may take.
MAX_DATABASE_AGE: Final = timedelta(days=5)
SCAN_TIMEOUT: Final = timedelta(minutes=10)
