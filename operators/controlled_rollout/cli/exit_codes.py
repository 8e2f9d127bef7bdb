"""The exit codes of the command line; docs/command-line.md has them as a table."""

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    """Done; of `gate`: the version may go on; of `scan`: it may be rolled out."""
    FAILED = 1
    """Not done, with the reason on stderr; of commands that find something out: it is not as it should be."""
    WRONG_ARGUMENTS = 2
    """The arguments are not valid, or a port is in use; nothing was tried."""
    GATE_FAILED = 3
    """Of `gate`: a claim alarms: roll the version back."""
    NOT_DECIDED = 4
    """Of `gate`: no decision yet: not enough evidence, it cannot be seen, or the split is not what was set."""
    DEADLINE = 5
    """Of `gate`: a person decides: the rollout is on hold, or there is no decision within the time that it may take."""
    NOTHING_TO_COMPARE = 6
    """Of `gate`: the version is the control, or the only one."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""
    CLOSED_PIPE = 141
    """Whoever read the output has ended, such as `head`."""
