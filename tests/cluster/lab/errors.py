"""The lab's error."""


class LabError(Exception):
    """The lab cannot do what was asked; the message says what was asked, what was found and what to do."""
