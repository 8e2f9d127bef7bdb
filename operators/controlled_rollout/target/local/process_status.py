"""The status of one process of a local workspace."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from controlled_rollout.target.local.supervised_process import SupervisedProcess

__all__ = ["ProcessStatus"]


class ProcessStatus(BaseModel):
    """One process, whether it runs or not.

    Attributes:
        name: What it is: `supervisor`, `router`, `telemetry store`, `collector`, or a replica as
            `<endpoint>/<replica>`.
        pid: The process id; None while it does not run.
        problem: What is wrong with it in words; None if it runs and answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int | None
    problem: str | None = None

    @classmethod
    def of(cls, process: SupervisedProcess, *, is_answering: bool) -> Self:
        """Return the status of a supervised process, given whether it has answered its last health check."""
        problem: str | None = None
        if process.pid is None:
            ended = f": {process.last_exit}" if process.last_exit else ""
            problem = "stopped" if process.is_stopping else f"not running{ended}; started {process.starts} times"
        elif not is_answering:
            before = f"; the one before {process.last_exit}" if process.last_exit else ""
            problem = f"does not answer{before}"
        return cls(name=process.name, pid=process.pid, problem=problem)
