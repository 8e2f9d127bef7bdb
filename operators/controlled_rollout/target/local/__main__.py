"""The supervisor in the background: `python -m controlled_rollout.target.local <settings as JSON>`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from controlled_rollout.target.local.supervisor_process import serve
from controlled_rollout.workspace import Workspace


def main(settings: dict[str, Any]) -> int:
    """Serve, and tell whoever started this how the start went, in one line of JSON on a pipe."""
    pipe = os.fdopen(settings["tell"], "wb")

    def tell(message: dict[str, Any]) -> None:
        with pipe:
            pipe.write(json.dumps(message).encode() + b"\n")

    # Children must not hold the pipe open.
    os.set_inheritable(settings["tell"], False)
    return serve(Workspace.local(Path(settings["root"])), port=settings["port"], host=settings["host"], tell=tell)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
