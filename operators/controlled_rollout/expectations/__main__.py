"""The process that evaluates: `python -m controlled_rollout.expectations`, with a socket as its standard input."""

import socket

from controlled_rollout.expectations.server import serve


def main() -> None:
    """Serve until nobody asks any more."""
    with socket.socket(fileno=0) as control:
        serve(control)


if __name__ == "__main__":
    main()
