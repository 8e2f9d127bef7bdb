"""The rollout that holds an endpoint, and the runs that wait until they may: parts of the endpoint's document. Pure."""

import re
from datetime import timedelta
from enum import StrEnum
from typing import Final

from pydantic import AwareDatetime, field_validator

from controlled_rollout.defaults import SILENCE
from controlled_rollout.errors import EndpointError
from controlled_rollout.value import Value
from controlled_rollout.version import Name

__all__ = ["LEAST_SILENCE", "OnSilence", "Rollout", "WaitingRun"]

# The shortest time without a look after which a treatment may be taken back.
LEAST_SILENCE: Final = timedelta(seconds=1)
# What the owner of a rollout ends with if it is one instance of a mapped group, or one of several groups of its DAG.
PART_OF_RUN: Final = re.compile(r"\[[^\[\]]+\]$")


class OnSilence(StrEnum):
    """What becomes of a treatment with traffic that nobody has looked at for long: it is rolled back, or kept."""

    ROLL_BACK = "roll_back"
    KEEP = "keep"


class Rollout(Value):
    """The rollout that holds an endpoint; only one at a time may.

    Attributes:
        version: The treatment that is being rolled out.
        owner: The run that holds the endpoint, such as `retrain_and_deploy/scheduled__2026-01-05`; in a mapped group
            with the index, such as `[0]`, after it, and with a group's name if the DAG has several for one version.
        started: Since when it holds the endpoint.
        held: Since when it is on hold, because its gate came to no decision and a person has to; None if it is not.
        resumed: When the last hold ended: a gate's deadline counts anew from there. None if there was none.
        on_silence: What happens when nobody has looked at the treatment for `silence`. A person who shifts by hand has
            promised no looks.
        silence: How long that is.
    """

    version: Name
    owner: str
    started: AwareDatetime
    held: AwareDatetime | None = None
    resumed: AwareDatetime | None = None
    on_silence: OnSilence = OnSilence.KEEP
    silence: timedelta = SILENCE

    @field_validator("silence")
    @classmethod
    def _check_silence(cls, silence: timedelta) -> timedelta:
        """Raise EndpointError if the time without a look is too short for anybody to look within it."""
        if silence < LEAST_SILENCE:
            raise EndpointError(
                f"silence = {silence.total_seconds():g} s is too short for anybody to look within it: give "
                f"{LEAST_SILENCE.total_seconds():g} s or more, or on_silence='keep'"
            )
        return silence

    def is_of(self, who: str) -> bool:
        """Return whether `who`, a person or a task as `dag/run/task`, is the owner or one of the owner's tasks."""
        return who == self.owner or who.startswith(f"{self.owner}/")

    def is_of_run(self, run: str) -> bool:
        """Return whether the owner is a run, or one of its instances or groups, whichever of them `run` names."""
        return PART_OF_RUN.sub("", self.owner) == PART_OF_RUN.sub("", run)

    def is_same(self, other: "Rollout | None") -> bool:
        """Return whether the other is the same rollout, on hold or not."""
        identity = (self.version, self.owner, self.started)
        return other is not None and identity == (other.version, other.owner, other.started)


class WaitingRun(Value):
    """A run that waits until it may roll a version out, because another one holds the endpoint.

    Attributes:
        owner: The run.
        run_date: When it was due: the earliest is next.
        until: When it gives up.
    """

    owner: str
    run_date: AwareDatetime
    until: AwareDatetime
