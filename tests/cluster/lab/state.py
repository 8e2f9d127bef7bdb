"""The state of a lab, kept in a file between commands."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Process", "State"]


@dataclass(frozen=True)
class Process:
    """A started process.

    Attributes:
        pid: Its id.
        started: Its start, in clock ticks since boot: another process with the same id has another start.
    """

    pid: int
    started: int


@dataclass
class State:
    """The state of a lab. Callers write every change at once.

    Attributes:
        file: The file of the state.
        ports: Ports on loopback, by listener.
        processes: The started processes that were not ended, by name.
        absent: Folders of the system that did not exist before the lab.
        kernel: The values of kernel settings before the lab, by name.
        gateway_port: The node port of the gateway; 0 before there is one.
        started_by: The test run that has started the lab and has to take it down; empty for a person's.
    """

    file: Path
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    kernel: dict[str, str] = field(default_factory=dict)
    gateway_port: int = 0
    started_by: str = ""

    @classmethod
    def read(cls, file: Path) -> "State | None":
        """Read the state; None where there is no file."""
        try:
            document = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        document["processes"] = {name: Process(**process) for name, process in document["processes"].items()}
        return cls(file, **document)

    def write(self) -> None:
        """Write the state atomically."""
        document = asdict(self)
        del document["file"]
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(document, indent=2))
        draft.replace(self.file)
