"""Users as the unit: each counts once at a split, by the first request after it was set.

Requests of one user are not independent where the split goes by a key of the user. Users are: the hash of each falls
anywhere with the same probability, whatever the user does. At a later split that draw is not made again: who is in the
treatment stays there, and counts no more. Who was in control, when the treatment had the part `a` of the traffic, comes
to it at the part `s` with the probability (s - a) / (1 - a), whatever was seen until then; so these users are counted
apart, in a bin of their own for each `a`. Given how many of a bin's users had an error, the treatment's number is
hypergeometric then, as it is for requests that are split at random.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from controlled_rollout.gate.model import Bin, Counts, Gate, UserCounts

__all__ = ["bins_of_users", "wrong_unit"]

# No two bins may begin at the same moment: those of one time begin so far apart.
APART: Final = timedelta(microseconds=1)


def wrong_unit(gate: Gate, endpoint: str, sticky: str | None) -> str:
    """Return a sentence on why a gate counts the wrong unit at an endpoint; empty if it does not.

    Args:
        gate: The gate.
        endpoint: The endpoint's name.
        sticky: The key by which its split goes; None if it is at random.
    """
    if sticky is not None and gate.unit != "user":
        return (
            f"endpoint {endpoint!r} is sticky by {sticky}, so that requests of one user are not independent, and the "
            f"gate counts requests: a healthy treatment could be stopped; give the gate unit='user'"
        )
    if sticky is None and gate.unit == "user":
        return (
            f"the gate counts users (unit='user'), and endpoint {endpoint!r} is not sticky: no request says whose it "
            "is, and each is drawn by itself; leave unit out, or make an endpoint with sticky"
        )
    return ""


def bins_of_users(bins: Iterable[Bin]) -> list[Bin]:
    """Return bins whose requests are users, one for each way in which users were drawn; none where there are none."""
    result: list[Bin] = []
    for bin_ in bins:
        control = {counts.above: counts for counts in bin_.control.users}
        treatment = {counts.above: counts for counts in bin_.treatment.users}
        for number, above in enumerate(sorted(control.keys() | treatment.keys())):
            result.append(
                Bin(
                    start=bin_.start + number * APART,
                    control=_user_counts(control.get(above), bin_.control),
                    treatment=_user_counts(treatment.get(above), bin_.treatment),
                    share=bin_.share,
                    checks_split=above == 0,
                )
            )
    return result


def _user_counts(users: UserCounts | None, requests: Counts) -> Counts:
    """Return users as counts; none if there are no users, with as many latency thresholds as the requests have."""
    if users is None:
        return Counts(requests=0, errors=0, slow=(0,) * len(requests.slow))
    return Counts(requests=users.users, errors=users.errors, slow=users.slow, overloaded=users.overloaded)
