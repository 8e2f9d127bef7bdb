"""The demo's own error: what went wrong, in a sentence that ends its output."""

__all__ = ["DemoError"]


class DemoError(Exception):
    """The demo cannot go on; the message says what was asked, what was found, and where to look."""
