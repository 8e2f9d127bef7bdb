"""The evidence beside what the router itself has counted: what is missing in the store, and what is too much. Pure.

A store that loses rows must not make a version look good, and rows that somebody else wrote must not decide at all.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.evidence import CLOCKS_DIFFER, CountedPeriod, RouterCounts
from controlled_rollout.gate import Bin
from controlled_rollout.record import LookInput

__all__ = ["contradiction", "split_contradiction"]

# So many requests that the router counted and the store has no row of are not chance.
MIN_UNSEEN_REQUESTS: Final = 20
# So many rows more than the router counted may be of requests whose bodies were still coming, and so large a part.
SPARE_ROWS: Final = 2
SPARE_PART: Final = 0.001
# The router's counts are read so long after the time that is noted for them, at most.
READING: Final = timedelta(seconds=5)
# A router that is being ended answers on open connections for so long, at most, and nobody reads its counts any more.
DRAINING: Final = timedelta(minutes=2)
# How many standard deviations the number of requests that sampled rows stand for may be off.
SAMPLING_DEVIATIONS: Final = 6.0
# How many standard deviations what the router has counted may be off the split that was set, and rows off the counts.
SPLIT_DEVIATIONS: Final = 6.0
ROWS_DEVIATIONS: Final = 3.0


def contradiction(look: LookInput) -> str | None:
    """Return a sentence if the store has fewer or more of a version's requests than the router; None otherwise."""
    versions = ((look.settings.control, False), (look.settings.treatment, True))
    for version, is_treatment in versions:
        if problem := _too_many(look, version, is_treatment) or _too_few(look, version, is_treatment):
            return problem
    return None


def split_contradiction(look: LookInput) -> str | None:
    """Return a sentence if the rows of a look show another split than the router's counts, which fit the set one.

    Then the split is right, and rows are missing or somebody else's. A few rows too many show in the split before they
    are more than the router has counted: its counts are of a longer time than the closed bins.
    """
    control, treatment = look.settings.control, look.settings.treatment
    for period in _counted_periods(look):
        bins = [bin_ for bin_ in look.evidence.bins if period.first.at <= bin_.start <= period.last.at]
        shares = [bin_.share for bin_ in bins if bin_.share is not None]
        counts = [period.last.of(version) - period.first.of(version) for version in (control, treatment)]
        rows = [sum(_stored_requests(bin_, is_treatment) for bin_ in bins) for is_treatment in (False, True)]
        counted, stored = sum(counts), sum(rows)
        if not (shares and counted and stored):
            continue
        as_counted = counts[1] / counted
        nearest_share = min(max(as_counted, min(shares)), max(shares))
        if _differs_from_share(counts[1], counted, nearest_share, SPLIT_DEVIATIONS):
            continue
        if _differs_from_share(rows[1], stored, as_counted, ROWS_DEVIATIONS):
            return (
                f"the metric store has {rows[1]} requests of version {treatment!r} among {stored}, and the router "
                f"counted {counts[1]} among {counted} from {period.first.at:%H:%M:%S} to {period.last.at:%H:%M:%S}, "
                "which is the split: not judged, for rows are missing in the store, or somebody else than the router "
                "writes telemetry"
            )
    return None


def _differs_from_share(number: int, total: int, share: float, deviations: float) -> bool:
    """Return whether a number of requests is further from a share of a total than a fair draw comes."""
    spread = deviations * math.sqrt(total * share * (1 - share))
    return abs(number - total * share) > spread + SPARE_ROWS


def _counted_periods(look: LookInput) -> list[CountedPeriod]:
    """Return the periods over which the router's counts are known, up to those of the look itself."""
    periods = list(look.periods)
    if present := look.router[-1] if look.router else None:
        periods += [periods[-1].until(present)] if periods and periods[-1].goes_on_with(present) else []
        periods += [CountedPeriod(present, present)] if not periods and present.routers else []
    return periods


# Too many


def _too_many(look: LookInput, version: str, is_treatment: bool) -> str | None:
    """Return a sentence if the store has more rows of a version than its router counted requests."""
    started, bins = look.settings.started, look.evidence.bins
    periods = _counted_periods(look)
    for period in periods:
        begins = period.first.at + (READING if period.first == periods[0].first else DRAINING)
        within = _bins_between(look, bins, begins, period.last.at - CLOCKS_DIFFER)
        counted = period.last.of(version) - period.first.of(version)
        if problem := _excess_sentence(version, within, is_treatment, counted, period.first.at, period.last.at):
            return problem
    for period in periods:
        # Counts that go on from the first look on, by routers that have counted since before the rollout began.
        if period.first == periods[0].first and all(since <= started for since in period.last.routers.values()):
            whole = _bins_between(look, bins, started - look.settings.window.bin_width, period.last.at - CLOCKS_DIFFER)
            if problem := _excess_sentence(
                version, whole, is_treatment, period.last.of(version), started, period.last.at
            ):
                return problem
    return None


def _bins_between(look: LookInput, bins: Iterable[Bin], start: datetime, end: datetime) -> list[Bin]:
    """Return the bins that lie wholly between two moments."""
    width = look.settings.window.bin_width
    return [bin_ for bin_ in bins if bin_.start >= start and bin_.start + width <= end]


def _excess_sentence(
    version: str, bins: Sequence[Bin], is_treatment: bool, counted: int, start: datetime, end: datetime
) -> str | None:
    """Return a sentence if bins hold more requests of a version than the router counted from `start` to `end`."""
    rows = sum(_stored_requests(bin_, is_treatment) for bin_ in bins)
    stored = sum(_represented_requests(bin_, is_treatment) for bin_ in bins)
    most = counted + SPARE_ROWS + SPARE_PART * counted
    # What sampled rows stand for is an estimate. However they are sampled, they are no more than the requests.
    spare = SAMPLING_DEVIATIONS * stored / math.sqrt(rows) if stored > rows > 0 else 0.0
    if rows <= most and stored <= most + spare:
        return None
    return (
        f"the metric store has {stored} requests of version {version!r}, and the router counted {counted} from "
        f"{start:%H:%M:%S} to {end:%H:%M:%S}: not judged, for nobody but the router may write telemetry; find out who "
        "else does"
    )


# Too few


def _too_few(look: LookInput, version: str, is_treatment: bool) -> str | None:
    """Return a sentence if a version has requests at the router and the store has none, or gets no more of them.

    A store that loses one version's rows must not make the other look good, and one that stops getting rows must not
    let time pass as if there were no traffic.
    """
    evidence, router = look.evidence, look.router
    if not any(bin_.share is not None and _set_share(bin_, is_treatment) > 0 for bin_ in evidence.bins):
        return None
    counted = [bin_ for bin_ in evidence.bins if _stored_requests(bin_, is_treatment)]
    if not counted:
        has_traffic = any(_stored_requests(bin_, not is_treatment) for bin_ in evidence.bins)
        sent = _sent_to_unseen_version(look, version, has_traffic=has_traffic)
        is_mismatch = sent >= (1 if has_traffic else MIN_UNSEEN_REQUESTS)
        return _unseen_sentence(version, sent, f"in {len(evidence.bins)} bins") if is_mismatch else None
    newest_end = max(bin_.start for bin_ in counted) + look.settings.window.bin_width
    return _silent_version(version, newest_end, router, evidence.until)


def _sent_to_unseen_version(look: LookInput, version: str, *, has_traffic: bool) -> int:
    """Return how many requests the router has sent to a version that the store has no row of, as far as that is known.

    Counted from the first look since the router started, up to the last one that the evidence covers. Before there are
    two such looks the router's whole count stands for it, but only where the other version has rows: a router has
    counted since before the rollout, and at an endpoint that nobody calls there is nothing to miss.

    Args:
        look: The look.
        version: The version.
        has_traffic: Whether the store has rows of the other version.
    """
    readings = [*(period.first for period in look.periods[-1:]), *look.router[:-1]]
    covered = [counts for counts in readings if counts.at <= look.evidence.until]
    if len(covered) > 1:
        return max(0, covered[-1].requests.get(version, 0) - covered[0].requests.get(version, 0))
    return look.router[-1].requests.get(version, 0) if look.router and has_traffic else 0


def _silent_version(
    version: str, counted_until: datetime, router: Sequence[RouterCounts], until: datetime
) -> str | None:
    """Return a sentence if the store gets no more rows of a version that still gets requests; else None."""
    covered = [counts for counts in router if counted_until <= counts.at <= until]
    if len(covered) < 2:
        return None
    sent = covered[-1].requests.get(version, 0) - covered[0].requests.get(version, 0)
    if sent < MIN_UNSEEN_REQUESTS:
        return None
    return _unseen_sentence(version, sent, f"between {covered[0].at:%H:%M:%S} and {covered[-1].at:%H:%M:%S}")


def _unseen_sentence(version: str, sent: int, where: str) -> str:
    """Return the sentence that the store lacks a version's requests, with where to look for the fault."""
    return (
        f"the router has sent {sent} requests to version {version!r}, and the metric store has none of them {where}: "
        "check the telemetry's way from the router to the store"
    )


# A version in a bin


def _set_share(bin_: Bin, is_treatment: bool) -> float:
    """Return the set share (0 to 1) of the treatment or control in a bin; unknown counts as 0 for the treatment."""
    share = bin_.share or 0.0
    return share if is_treatment else 1 - share


def _stored_requests(bin_: Bin, is_treatment: bool) -> int:
    """Return the requests of the treatment or of control that a bin has rows of."""
    return (bin_.treatment if is_treatment else bin_.control).requests


def _represented_requests(bin_: Bin, is_treatment: bool) -> int:
    """Return the requests of the treatment or of control that a bin's rows stand for: more than rows if sampled."""
    counts = bin_.treatment if is_treatment else bin_.control
    return counts.represented or counts.requests
