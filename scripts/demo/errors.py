"""The demo's error."""

__all__ = ["DemoError"]


class DemoError(Exception):
    """The demo cannot go on; the message ends its output."""
