"""Users of a sticky endpoint: requests as they come, and by the rule which of them count (the oracle of the KQL)."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlled_rollout.gate import Bin, Counts, UserCounts

__all__ = [
    "STARTED",
    "Counted",
    "Steps",
    "UserRequest",
    "bins_of_requests",
    "counted_requests",
    "request_bins",
    "simulated_requests",
]

STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
BIN = timedelta(minutes=1)
# When the treatment has had which part of the traffic, oldest first.
Steps = Sequence[tuple[datetime, float]]


@dataclass(frozen=True, slots=True)
class UserRequest:
    """One request of a user."""

    at: datetime
    user: str
    is_treatment: bool
    is_error: bool = False
    ms: float = 5.0


@dataclass(frozen=True, slots=True)
class Counted:
    """A request that counts for its user, and how the user was drawn."""

    request: UserRequest
    above: float


def step_of(at: datetime, steps: Steps) -> int:
    """Return the number of the step in which a moment lies; -1 before the first."""
    return sum(1 for since, _ in steps if since <= at) - 1


def counted_requests(requests: Iterable[UserRequest], steps: Steps, *, guard: timedelta) -> list[Counted]:
    """Return the requests that count: each user's first of a step, until the treatment has answered the user."""
    by_user: dict[str, dict[int, list[UserRequest]]] = {}
    for request in sorted(requests, key=lambda one: one.at):
        number = step_of(request.at, steps)
        if number < 1 or request.at >= steps[number][0] + guard:
            by_user.setdefault(request.user, {}).setdefault(number, []).append(request)
    counted: list[Counted] = []
    for of_steps in by_user.values():
        above, is_in_treatment = 0.0, False
        for number, of_step in sorted(of_steps.items()):
            share = steps[number][1] if number >= 0 else 0.0
            if not is_in_treatment and (above == 0 or above < share):
                counted.append(Counted(of_step[0], above))
            if number >= 0:
                is_in_treatment |= any(one.is_treatment for one in of_step)
                above = max(above, share)
    return counted


def bins_of_requests(counted: Iterable[Counted], steps: Steps) -> list[Bin]:
    """Return bins of a minute with the users in them, as a metric store gives them; without latency."""
    tallies: dict[datetime, dict[tuple[bool, float], list[int]]] = {}
    for one in counted:
        start = one.request.at - (one.request.at - STARTED) % BIN
        tally = tallies.setdefault(start, {}).setdefault((one.request.is_treatment, one.above), [0, 0])
        tally[0] += 1
        tally[1] += one.request.is_error
    bins: list[Bin] = []
    for start, of_bin in sorted(tallies.items()):
        versions = [
            tuple(
                UserCounts(users, errors, above=above)
                for (is_of, above), (users, errors) in of_bin.items()
                if is_of is t
            )
            for t in (False, True)
        ]
        control, treatment = (
            Counts(sum(u.users for u in users), sum(u.errors for u in users), users=users) for users in versions
        )
        number = step_of(start, steps)
        is_known = number < 1 or start > steps[number][0]
        bins.append(Bin(start, control, treatment, share=steps[number][1] if is_known and number >= 0 else None))
    return bins


def request_bins(requests: Iterable[UserRequest], steps: Steps) -> list[Bin]:
    """Return bins of a minute in which every request counts."""
    tallies: dict[int, list[int]] = {}
    for one in requests:
        tally = tallies.setdefault((one.at - STARTED) // BIN, [0, 0, 0, 0])
        tally[2 * one.is_treatment] += 1
        tally[2 * one.is_treatment + 1] += one.is_error
    bins = []
    for minute, (control, control_errors, treatment, treatment_errors) in sorted(tallies.items()):
        start = STARTED + minute * BIN
        # A bin in which the split changes has no known share.
        share = None if any(since == start for since, _ in steps[1:]) else steps[step_of(start, steps)][1]
        bins.append(Bin(start, Counts(control, control_errors), Counts(treatment, treatment_errors), share=share))
    return bins


def simulated_requests(
    source: random.Random,
    steps: Steps,
    *,
    minutes: int,
    users: int,
    returning: float = 0.7,
    heavy: float = 0.02,
    bad: float = 0.05,
    treatment_bad: float = 0.0,
) -> list[UserRequest]:
    """Return the requests of a rollout by users who differ: some fail nearly always, and a few send most requests.

    Args:
        source: Random numbers.
        steps: When the treatment has which part of the traffic.
        minutes: For how long.
        users: How many are there.
        returning: The part of the users who come again and again; the others come for a minute.
        heavy: The part of the users who send fifty times as many requests.
        bad: The part of the users of whose requests nine of ten fail, whichever version answers.
        treatment_bad: The part of further users whose requests the treatment fails.
    """
    requests: list[UserRequest] = []
    for number in range(users):
        place = source.random()
        fails = 0.9 if source.random() < bad else 0.005
        fails_treatment = max(fails, 0.9 if source.random() < treatment_bad else 0.0)
        times = 50 if source.random() < heavy else 1 + int(source.expovariate(0.5))
        stays = source.random() < returning
        first = source.random() * minutes
        for _ in range(times):
            minute = source.random() * minutes if stays else min(minutes - 1e-6, first + source.random())
            at = STARTED + timedelta(minutes=minute)
            share = next(share for since, share in reversed(steps) if since <= at)
            is_treatment = place < share
            is_error = source.random() < (fails_treatment if is_treatment else fails)
            requests.append(UserRequest(at, f"user-{number}", is_treatment, is_error))
    return requests
