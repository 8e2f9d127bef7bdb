"""The one family of errors: each message says what was asked, what was found and what to do."""


class ControlledRolloutError(Exception):
    """The root of every error that this package raises on purpose."""


class ArgumentError(ControlledRolloutError):
    """An argument of a task is not valid; nothing was changed."""


class EndpointError(ControlledRolloutError):
    """A rule of the endpoint was broken; the endpoint is as it was before the call."""


class EndpointNotFoundError(ControlledRolloutError):
    """No endpoint of that name exists in the workspace."""


class ConflictError(ControlledRolloutError):
    """Somebody else changed, or is rolling out on, the same endpoint."""


class NothingToDoError(ControlledRolloutError):
    """The step is not needed, or its subject is not the caller's; nothing was changed. Airflow skips such a task."""


class ImageError(ControlledRolloutError):
    """The project folder or its environment cannot be made into an image."""


class RegistryUnavailableError(ImageError):
    """The registry does not answer, or says that it cannot serve now: trying again later may help."""


class ScanError(ImageError):
    """The image was not scanned, or what was found stops it: it must not be rolled out."""


class ScanUnavailableError(ScanError):
    """Nobody has looked at the image: the scanner or its database is missing, too old or away. Never a pass."""


class DeploymentError(ControlledRolloutError):
    """A version did not become ready; the message carries the cause and the last log lines."""


class TargetUnavailableError(ControlledRolloutError):
    """The place where endpoints live does not answer."""


class AccessError(ControlledRolloutError):
    """The place where endpoints live answers, and does not let this identity do what it asked for."""


class EvidenceUnavailableError(ControlledRolloutError):
    """The metric store cannot be read, or read only in part. Never a statement about the model."""


class WorkspaceError(ControlledRolloutError):
    """The workspace's configuration does not make sense."""


class EvidenceError(ControlledRolloutError, ValueError):
    """Inconsistent counts (negative, or more errors than requests)."""
