"""What the lab says when it cannot go on."""


class LabError(Exception):
    """The lab cannot do what it was asked; the message says what was asked, what was found and what to do."""
