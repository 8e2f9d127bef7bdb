"""Whether somebody still looks after a rollout: the signs, and when their absence takes a treatment back. Pure.

The rollout is driven from outside, by tasks of Airflow or a person's commands. If these are gone, nobody would see that
the treatment fails. So whoever runs beside the endpoint all the time, the local supervisor or the cluster's agent, asks
this module again and again.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict

from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.rollout import OnSilence, Rollout
from controlled_rollout.target.protocol import LookNote, Revision

__all__ = [
    "FailedTries",
    "Observation",
    "Signs",
    "SilenceCheck",
    "TakeBack",
    "Watched",
    "check_silence",
    "unattended_rollout",
]

# Who has begun to watch just now, or was suspended with the whole machine, gives everybody else this time to look too.
GRACE: Final = timedelta(minutes=2)
# A watcher that has not checked for so long was suspended, or had no processor.
GAP: Final = timedelta(minutes=1)
# After a try to take a treatment back that failed for good: twice as long after each further one, up to the maximum.
FIRST_PAUSE: Final = timedelta(seconds=2)
MAX_PAUSE: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class Signs:
    """What shows that somebody is there.

    Attributes:
        newest: The endpoint's newest revision: a shift, a hold, whatever was done by a task or a person.
        looked: The last look of a gate, or step that was under way; None if there was none.
    """

    newest: Revision
    looked: LookNote | None = None

    @property
    def key(self) -> tuple[int, LookNote | None]:
        """What is another value once there is a new sign."""
        return self.newest.number, self._look_at_treatment

    @property
    def at(self) -> datetime:
        """When the newest sign was given, by the clock of whoever gave it."""
        looked = self._look_at_treatment
        return max(self.newest.created, looked.at) if looked is not None else self.newest.created

    @property
    def _look_at_treatment(self) -> LookNote | None:
        """The last look if it was at the version that is being rolled out; a look at another one says nothing."""
        rollout = self.newest.endpoint.rollout
        return self.looked if self.looked and rollout and self.looked.version == rollout.version else None


@dataclass(frozen=True)
class Observation:
    """What a watcher remembers of an endpoint from one check to the next.

    It only ever puts a roll-back off: a watcher that has forgotten it decides by what is written down, after `GRACE`.

    Attributes:
        key: Which sign was the newest.
        since: When that was given, by the watcher's own clock.
        begun: Since when the watcher has been checking without a gap.
        checked: When it checked last.
    """

    key: tuple[int, LookNote | None]
    since: datetime
    begun: datetime
    checked: datetime

    def moved(self, by: timedelta) -> "Observation":
        """Return the same after the watcher's clock was set by so much."""
        return replace(self, since=self.since + by, begun=self.begun + by, checked=self.checked + by)


class Watched(BaseModel):
    """Since when somebody has been watching without a gap, whoever it was: a watcher that takes over goes on with it.

    Attributes:
        begun: Since when.
        checked: When it was last known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    begun: AwareDatetime
    checked: AwareDatetime

    @classmethod
    def after(cls, before: "Watched | None", now: datetime) -> "Watched":
        """Return what is known once somebody watches now: it begins anew after a gap, or where a clock was set back.

        Args:
            before: What was known before; None for nothing.
            now: The time by the clock of who knew that.
        """
        goes_on = before is not None and timedelta(0) <= now - before.checked <= GAP
        return cls(begun=before.begun if before is not None and goes_on else now, checked=now)


class TakeBack(BaseModel):
    """That a treatment is to be taken back, and what that was decided on.

    Attributes:
        endpoint: The endpoint's name.
        rollout: The rollout whose treatment it is.
        revision: The number of the revision that was the newest.
        looked: The last look that was known.
        since: Since when nobody has looked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    rollout: Rollout
    revision: int
    looked: LookNote | None
    since: AwareDatetime

    @property
    def reason(self) -> str:
        """Why, as a sentence for history and record."""
        return (
            f"nobody looked since {self.since:%Y-%m-%d %H:%M:%S %Z} (silence {format_duration(self.rollout.silence)})"
        )

    def is_right(self, signs: Signs) -> bool:
        """Return whether there is no newer sign that somebody is there."""
        return (self.revision, self.looked) == signs.key


@dataclass(frozen=True)
class FailedTries:
    """Tries to take one treatment back that failed, one after the other.

    Attributes:
        order: What was to be taken back.
        problem: Why the last try failed.
        last: When that ended.
        count: How many there were.
    """

    order: TakeBack
    problem: str
    last: datetime
    count: int = 1

    @property
    def next(self) -> datetime:
        """When it is tried again."""
        doubled = min(self.count - 1, 16)
        return self.last + min(FIRST_PAUSE * (1 << doubled), MAX_PAUSE)

    def is_too_soon(self, order: TakeBack, now: datetime) -> bool:
        """Return whether a take-back waits for its next try; another decision than the one that failed does not.

        Args:
            order: What is to be taken back now.
            now: The time by the watcher's clock; one that was set back does not make it wait longer than a pause.
        """
        return order == self.order and self.last <= now < self.next

    def and_another(self, order: TakeBack, problem: str, now: datetime) -> "FailedTries":
        """Return what is known after one more try that failed; another decision is counted from one again."""
        return FailedTries(order, problem, now, self.count + 1 if order == self.order else 1)

    def moved(self, by: timedelta) -> "FailedTries":
        """Return the same after the watcher's clock was set by so much."""
        order = self.order.model_copy(update={"since": self.order.since + by})
        return replace(self, order=order, last=self.last + by)

    @property
    def sentence(self) -> str:
        """What people have to know of it."""
        times = "once" if self.count == 1 else f"{self.count} times"
        return (
            f"version {self.order.rollout.version!r} keeps its traffic although {self.order.reason}: taking it back "
            f"has failed {times}, and is tried again at {self.next:%Y-%m-%d %H:%M:%S %Z}: {self.problem}"
        )


@dataclass(frozen=True)
class SilenceCheck:
    """What a check has found.

    Attributes:
        observation: What to give to the next check.
        take_back: What is to be taken back now; None if nothing is.
        due: When a treatment is to be taken back if nobody looks until then; None if there is none.
    """

    observation: Observation
    take_back: TakeBack | None = None
    due: datetime | None = None


def unattended_rollout(endpoint: Endpoint) -> Rollout | None:
    """Return the rollout that must not go on without looks; None if there is none.

    There is none while no treatment of a rollout has traffic, on hold (people have been told, and one decides), and
    with `on_silence` `keep`. What a person has shifted without a rollout, or after having ended one, is theirs.

    Args:
        endpoint: The newest revision.
    """
    rollout = endpoint.rollout
    if rollout is None or rollout.on_silence is OnSilence.KEEP or rollout.held is not None:
        return None
    treatment = endpoint.versions.get(rollout.version)
    if treatment is None or treatment.is_control or treatment.is_default:
        return None
    return rollout if endpoint.effective_traffic()[treatment.name] > 0 else None


def check_silence(
    signs: Signs,
    before: Observation | None,
    *,
    now: datetime,
    watched_since: datetime | None = None,
    unseen_at: datetime | None = None,
) -> SilenceCheck:
    """Return whether a treatment is to be taken back now because nobody has looked, or when it would be.

    Signs carry the time of whoever gave them, whose clock may be wrong. A sign that is new to the watcher was given
    after its last check and before now, whatever its time says; so a wrong clock neither takes a treatment back that
    is looked at, nor keeps one that is not.

    Args:
        signs: What shows that somebody is there.
        before: What the last check has returned; None for the first.
        now: The time by the watcher's clock.
        watched_since: For the first check: since when others have been watching before without a gap; None for nobody.
        unseen_at: For the first check: when the watcher saw that there was no such rollout yet; None if it has only now
            begun to watch, so that nothing but the clock of who gave the sign tells its time.
    """
    begun = now
    if before is None:
        since, begun = max(signs.at, unseen_at or signs.at), min(watched_since or now, now)
    else:
        since = before.since if signs.key == before.key else max(signs.at, before.checked)
        if timedelta(0) <= now - before.checked <= GAP:
            begun = before.begun
    observation = Observation(signs.key, min(since, now), begun, now)
    rollout = unattended_rollout(signs.newest.endpoint)
    if rollout is None:
        return SilenceCheck(observation)
    due = max(observation.since + rollout.silence, observation.begun + min(rollout.silence, GRACE))
    if now < due:
        return SilenceCheck(observation, due=due)
    revision, looked = signs.key
    take_back = TakeBack(
        endpoint=signs.newest.endpoint.name,
        rollout=rollout,
        revision=revision,
        looked=looked,
        since=observation.since,
    )
    return SilenceCheck(observation, take_back, due)
