"""What a lab has to remember from one command to the next."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Process", "State"]


@dataclass(frozen=True)
class Process:
    """A process that was started.

    Attributes:
        pid: Its id.
        started: Its start, in clock ticks since the machine's: tells another process apart that got the same id.
    """

    pid: int
    started: int


@dataclass
class State:
    """What was chosen and what was started; every change is written at once.

    Attributes:
        file: Where it is kept.
        ports: Ports on loopback, by who listens there.
        processes: What was started and not ended, by name.
        absent: Folders of the system that were not there before.
        kernel: Kernel settings as they were before, by name.
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
        """Return the state of the lab in a folder; None where there is none."""
        try:
            found = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        found["processes"] = {name: Process(**process) for name, process in found["processes"].items()}
        return cls(file, **found)

    def write(self) -> None:
        """Write it down, whole or not at all."""
        document = asdict(self)
        del document["file"]
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(document, indent=2))
        draft.replace(self.file)
