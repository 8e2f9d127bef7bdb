"""Train the first control and write the requests that the load generator sends.

Run as `python -m scripts.demo.train_control FOLDER`: a process of its own, so that the live view goes on.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Final

__all__ = ["MODEL", "PROJECT", "REQUESTS", "ROWS"]

PROJECT: Final = Path(__file__).resolve().parents[2] / "dags" / "models" / "digits"
MODEL: Final = Path("control", "model.joblib")
REQUESTS: Final = "requests.jsonl"
# How many digits one request holds.
ROWS: Final = 1


def main(folder: Path) -> None:
    """Train on the first part of the digits, and write the held-out digits as requests, one JSON body per line."""
    training = runpy.run_path(str(PROJECT / "train.py"))
    print(json.dumps(training["train"]((folder / MODEL).parent, part="first")))
    images, _ = training["held_out"]()
    bodies = [json.dumps({"data": images[start : start + ROWS].tolist()}) for start in range(0, len(images), ROWS)]
    (folder / REQUESTS).write_text("\n".join(bodies), encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
