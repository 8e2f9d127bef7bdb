"""The supervisor's process with an autoscaler that takes replicas away after seconds: `… <seconds> <settings>`."""

import json
import sys

from controlled_rollout.autoscaling import history
from controlled_rollout.target.local.__main__ import main

if __name__ == "__main__":
    history.DOWN_WINDOW_S = float(sys.argv[1])  # type: ignore[misc]
    sys.exit(main(json.loads(sys.argv[2])))
