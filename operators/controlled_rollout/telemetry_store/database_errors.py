"""What can go wrong with the database, for the processes that do not load it."""

__all__ = ["DatabaseError", "MachineError", "RowsRefusedError"]


class DatabaseError(Exception):
    """The database cannot be opened, or a statement failed."""


class MachineError(DatabaseError):
    """The machine is short of something (disk full, no memory): the same rows can be written later."""


class RowsRefusedError(DatabaseError):
    """The database refuses at least one of the rows, now and later."""
