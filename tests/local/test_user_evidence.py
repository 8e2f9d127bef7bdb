"""The gate's users over HTTP against the real telemetry store, beside the rule by which they count."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, SplitChange
from controlled_rollout.evidence.bins import SPLIT_GUARD, floor_to_bin
from controlled_rollout.gate import Bin, Gate, UserCounts, judge
from tests.local.telemetry_lab import Process, source
from tests.sticky_users import UserRequest, counted_requests

S = timedelta(seconds=1)
STARTED = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
SPLITS = ((STARTED, 0.0), (STARTED + 60 * S, 0.1), (STARTED + 150 * S, 0.5), (STARTED + 240 * S, 0.25))
WINDOW = EvidenceWindow(bin_width=10 * S, allowed_lag=S, baseline_length=timedelta(minutes=2))


def read(store: Process, endpoint: str, gate: Gate) -> Evidence:
    query = EvidenceQuery(
        endpoint=endpoint,
        control="control",
        treatment="treatment",
        started=STARTED,
        now=STARTED + 331 * S,
        window=WINDOW,
        splits=[SplitChange(at, share) for at, share in SPLITS],
        gate=gate,
    )
    return asyncio.run(source(store).read(query))


def test_the_stores_users_are_those_who_count_by_the_rule(store: Process) -> None:
    """Random users over four splits, one smaller than the one before; a heavy user, and callers without a key."""
    draw = random.Random("users over four splits")
    requests: list[UserRequest] = []
    for number in range(150):
        place, user = draw.random(), f"user-{number}"
        for _ in range(300 if number == 0 else draw.randrange(1, 9)):
            at = STARTED + draw.uniform(-110, 329) * S
            share = next((share for since, share in reversed(SPLITS) if since <= at), 0.0)
            requests.append(UserRequest(at, user, place < share, draw.random() < 0.3, draw.choice([1.0, 400.0])))
    rows = [
        {
            "endpoint": "users",
            "at": one.at,
            "user": one.user,
            "version": "treatment" if one.is_treatment else "control",
            "code": "500" if one.is_error else "200",
            "ms": one.ms,
        }
        for one in requests
    ]
    anonymous = [{"endpoint": "users", "at": STARTED + n * S, "code": "500"} for n in range(200)]
    store.send(*rows, *anonymous)
    gate = Gate(unit="user", latency_quantiles=(0.5,))

    evidence = read(store, "users", gate)

    expected: dict[tuple[datetime, bool, float], list[int]] = {}
    for one in counted_requests(requests, SPLITS, guard=SPLIT_GUARD):
        if STARTED <= one.request.at < STARTED + 330 * S:
            key = floor_to_bin(one.request.at, WINDOW.bin_width), one.request.is_treatment, one.above
            tally = expected.setdefault(key, [0, 0, 0])
            tally[0] += 1
            tally[1] += one.request.is_error
            tally[2] += one.request.ms > evidence.thresholds_ms[0] * (1.05 if one.request.is_treatment else 1)
    found = {
        (one.start, is_treatment, users.above): [users.users, users.errors, *users.slow]
        for one in evidence.bins
        for is_treatment, counts in ((False, one.control), (True, one.treatment))
        for users in counts.users
    }
    assert found == expected
    assert {above for _, _, above in found} == {0.0, 0.1}
    assert sum(one.control.requests + one.treatment.requests for one in evidence.bins) > len(expected)
    assert sum(users.users for one in evidence.baseline for users in one.control.users) > 0
    verdict = judge(evidence.bins, gate, baseline=evidence.baseline)
    assert verdict.control_requests + verdict.treatment_requests == sum(tally[0] for tally in expected.values())
    assert len(store.rows(f"let Until = datetime({evidence.until.isoformat()});\n{evidence.queries[-1]}")) == len(
        [*found, *baseline_users(evidence)]
    )


def baseline_users(evidence: Evidence) -> list[tuple[Bin, UserCounts]]:
    """Return the users of control before the rollout, with their bins."""
    return [(one, users) for one in evidence.baseline for users in one.control.users]


def test_a_gate_that_counts_requests_reads_no_users(store: Process) -> None:
    """Nothing is asked about users that nobody judges."""
    store.send({"endpoint": "plain", "at": STARTED + S, "user": "somebody"})
    evidence = read(store, "plain", Gate())
    assert [one.control.users for one in evidence.bins] == [()]
    assert not any("User" in query for query in evidence.queries)


def test_a_user_whose_first_request_found_no_room_tells_of_the_split_alone(store: Process) -> None:
    """The same requests count for nothing else: a model is not blamed, and not praised, for what it has not scored."""
    at = STARTED + 100 * S
    full = {"endpoint": "crowded", "version": "treatment", "code": "503", "reason": "queue-full", "at": at}
    store.send(
        {**full, "user": "first"},
        {"endpoint": "crowded", "version": "treatment", "user": "first", "at": at + S, "code": "500"},
        {"endpoint": "crowded", "version": "treatment", "user": "second", "at": at, "code": "500"},
        {"endpoint": "crowded", "user": "third", "at": at},
    )
    gate = Gate(unit="user", latency_quantiles=())

    [counted] = read(store, "crowded", gate).bins

    assert counted.treatment.users == (UserCounts(2, 1, overloaded=1),)
    assert counted.control.users == (UserCounts(1, 0),)
    verdict = judge([counted], gate)
    assert verdict.treatment_requests == 2


def test_a_reason_without_its_status_is_none(store: Process) -> None:
    """The runtime refuses with 503 only: whatever else says so is an answer like all others."""
    full = {"endpoint": "odd", "version": "treatment", "reason": "queue-full", "at": STARTED + 100 * S}
    store.send(*({**full, "code": code} for code in ("503", "500", "504", "200")))

    [counted] = read(store, "odd", Gate(latency_quantiles=())).bins

    assert (counted.treatment.requests, counted.treatment.overloaded, counted.treatment.errors) == (4, 1, 2)


def test_who_hangs_up_in_the_queue_is_no_error_and_who_hangs_up_on_the_model_is_one(store: Process) -> None:
    """The version tells with a later answer how many left its queue; the router has only seen them hang up."""
    hung_up = {"endpoint": "left", "version": "treatment", "code": "0", "response_flags": "DC", "at": STARTED + 90 * S}
    # A row has the time at which its request began.
    answer = {"endpoint": "left", "version": "treatment", "at": STARTED + 30 * S}
    other = {"endpoint": "left", "version": "treatment", "at": STARTED + 130 * S}
    store.send(*[hung_up] * 5, {**answer, "left_queue": "2"}, {**hung_up, "code": "200"})
    store.send({**other, "left_queue": "1"}, {**other, "left_queue": "-"})

    found = [one.treatment for one in read(store, "left", Gate(latency_quantiles=())).bins]

    assert [(one.requests, one.errors, one.overloaded) for one in found] == [(1, 0, 0), (6, 2, 3), (2, 0, 0)]


def test_how_long_requests_were_scored_is_read_where_some_were_refused(store: Process) -> None:
    """It says of the model what durations do not, while others wait in its queue."""
    first = {"endpoint": "timed", "version": "treatment", "ms": 700.0, "at": STARTED + 100 * S}
    later = {**first, "at": STARTED + 220 * S, "scoring_ms": "9.5"}
    before = [{"endpoint": "timed", "ms": 10.0 + index % 5, "at": STARTED - 100 * S} for index in range(200)]
    store.send(
        *before,
        {**first, "code": "503", "reason": "waited-too-long"},
        *({**first, "scoring_ms": text} for text in ("9.5", "80.0", "-", "many")),
        later,
    )

    crowded, calm = read(store, "timed", Gate(latency_quantiles=(0.9,))).bins

    assert (crowded.treatment.requests, crowded.treatment.overloaded, crowded.treatment.slow) == (5, 1, (4,))
    assert crowded.treatment.scoring == (2, 1)
    assert calm.treatment.scoring == ()
