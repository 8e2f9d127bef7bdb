"""The family of errors: each message says what was asked, what was found and what to do."""

from typing import Final

# Raised by a fault of the software, not by what a server answered: waiting does not help, somebody has to read them.
PROGRAMMING_ERRORS: Final = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    TypeError,
)


class ControlledRolloutError(Exception):
    """The base of every error of this package."""


class ArgumentError(ControlledRolloutError):
    """An argument of a task is not valid; nothing was changed."""


class EndpointError(ControlledRolloutError):
    """A rule of the endpoint was broken; the endpoint is as it was before the call."""


class EndpointNotFoundError(ControlledRolloutError):
    """No endpoint of that name exists in the workspace."""


class ConflictError(ControlledRolloutError):
    """Another change of the same endpoint came first, or another rollout holds the endpoint."""


class NameTakenError(ConflictError):
    """A name is taken: by a version with another image, which no rollout may delete, or by an object of others.

    To wait does not help.
    """


class NotJudgedError(ControlledRolloutError):
    """A run asked for more traffic for its treatment than anybody has allowed: no gate and no person, at this share."""


class NothingToDoError(ControlledRolloutError):
    """The step is not needed, or not the caller's to take; nothing was changed. Airflow skips such a task."""


class ImageError(ControlledRolloutError):
    """The project folder or its environment cannot be made into an image."""


class RegistryUnavailableError(ImageError):
    """The registry does not answer, or cannot serve now: a later try may succeed."""


class ModelStoreUnavailableError(ImageError):
    """The store of a model does not answer, or cannot serve now: a later try may succeed."""


class ScanError(ImageError):
    """The image was not scanned, or has findings that the policy does not allow: it must not be rolled out."""


class ScanUnavailableError(ScanError):
    """The image was not scanned: the scanner or its database is missing, too old or unavailable. Never a pass."""


class DeploymentError(ControlledRolloutError):
    """A version did not become ready; the message carries the cause and the last log lines."""


class RouterTimeoutError(DeploymentError):
    """The router has not confirmed a split in time. The revision is stored: calling the step again goes on waiting."""


class TargetUnavailableError(ControlledRolloutError):
    """The target (the supervisor, or the cluster's API server) does not answer."""


class DamagedFileError(ControlledRolloutError):
    """What is stored of an endpoint cannot be read, or somebody has deleted it: no step changes it, all others go on.

    In the local workspace that is a file, and the endpoint is closed. On a cluster it serves as before.
    """


class AccessError(ControlledRolloutError):
    """The target answers, and does not allow this identity what it asked for."""


class EvidenceUnavailableError(ControlledRolloutError):
    """The metric store cannot be read, or read only in part. Never a statement about the model."""


class RecordUnavailableError(ControlledRolloutError):
    """The record of decisions cannot be read or appended to. Going back does not need it; going on does."""


class StorageError(ControlledRolloutError):
    """The workspace's storage cannot be read or written, or a name in it is not allowed. A later try may succeed."""


class StoredFileNotFoundError(StorageError):
    """The workspace's storage has no file of that name."""


class WorkspaceError(ControlledRolloutError):
    """The workspace's configuration is missing, contradictory or not valid."""


class EvidenceError(ControlledRolloutError, ValueError):
    """Inconsistent counts (negative, or more errors than requests)."""
