"""Lets `python -m controlled_rollout.cli` be the command line."""

import sys

from controlled_rollout.cli import main

if __name__ == "__main__":
    sys.exit(main())
