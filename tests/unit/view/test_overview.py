"""What people see of an endpoint: each version, what a rollout waits for, and whether a person is needed first."""

from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.gate import Claim, Outcome, Verdict, verdict_to_dict
from controlled_rollout.record import Decision
from controlled_rollout.rollout import OnSilence
from controlled_rollout.target.protocol import (
    Change,
    EndpointStatus,
    ReplicaState,
    ReplicaStatus,
    Revision,
    VersionStatus,
)
from controlled_rollout.view.history import history_entries
from controlled_rollout.view.models import EndpointOverview
from controlled_rollout.view.overview import by_urgency, creations, endpoint_overview, hold_reason, unread_endpoint
from controlled_rollout.view.recent_looks import RecentLooks
from controlled_rollout.view.runs import run_of_author, run_of_owner
from controlled_rollout.view.sentences import (
    SENTENCES,
    about_duration,
    verdict_explanation,
    verdict_sentence,
    waiting_sentence,
)

T0 = datetime(2026, 1, 5, 12, tzinfo=UTC)
RUN = "weekly/run-1"
IMAGE = "registry.example/digits@sha256:" + "a" * 64


def history(*, percent: float = 10.0, on_silence: OnSilence = OnSilence.KEEP) -> list[Revision]:
    first = Endpoint(name="digits").create_version("v1a", is_control=True, image=IMAGE)
    claimed = first.claim("v2a", owner=RUN, at=T0, on_silence=on_silence).create_version("v2a", image=IMAGE)
    shifted = claimed.shift("v2a", percent)
    revisions = []
    for number, (endpoint, who) in enumerate(
        [(first, "maria@laptop"), (claimed, f"{RUN}/deploy"), (shifted, f"{RUN}/x")]
    ):
        before = endpoint.model_copy(update={"revision": number})
        revision = Revision.after(before, Change(who=who, reason="newer"))
        revisions.append(revision.model_copy(update={"created": T0 + timedelta(minutes=number)}))
    return revisions


def status(**changes: object) -> EndpointStatus:
    ready = ReplicaStatus(name="v1a-0", state=ReplicaState.READY, restarts=2)
    versions = {
        "v1a": VersionStatus(name="v1a", ready=True, wanted_replicas=1, replicas=(ready,), requests=90),
        "v2a": VersionStatus(name="v2a", ready=False, wanted_replicas=2, cause="it starts"),
    }
    known = EndpointStatus(
        name="digits", url="http://127.0.0.1/score", revision=3, served_revision=2, versions=versions,
        weight_ppm={"v1a": 1_000_000},
    )  # fmt: skip
    return known.model_copy(update=changes)


def overview(revisions: list[Revision], looks: RecentLooks | None = None, **changes: object) -> EndpointOverview:
    endpoint = revisions[-1].endpoint
    return endpoint_overview(
        "ml",
        status(**changes),
        endpoint,
        creations(revisions),
        looks or RecentLooks(),
        reason_of_hold=hold_reason(revisions),
        read=T0,
    )


def look_line(
    minute: int,
    requests: int,
    claims: tuple[Claim, ...] = (),
    outcome: Outcome = Outcome.NOT_ENOUGH_EVIDENCE,
    waits: tuple[str, ...] = (),
) -> bytes:
    verdict = Verdict(outcome, claims, "because", 9 * requests, requests, waits)
    return decision_line("look", minute, verdict)


def decision_line(step: str, minute: int, verdict: Verdict | None = None, version: str = "v2a") -> bytes:
    values = {
        "time": T0 + timedelta(minutes=minute),
        "endpoint": "digits",
        "version": version,
        "step": step,
        "who": "x",
    }
    known = {"verdict": verdict_to_dict(verdict), "outcome": verdict.outcome.value, "share": 10.0} if verdict else {}
    return Decision.model_validate({**values, **known}).model_dump_json(exclude_none=True).encode()


def looks_of(revisions: list[Revision], *lines: bytes) -> RecentLooks:
    looks = RecentLooks(revisions[-1].endpoint.rollout)
    for line in lines:
        looks.add(line)
    return looks


def needing(requests: int | None) -> tuple[Claim, ...]:
    return (Claim("errors are not twice as likely", "pass", 3.0, 20.0, False, requests),)


def test_a_version_has_its_traffic_replicas_digest_and_who_created_it() -> None:
    control, treatment = overview(history()).versions
    assert (control.role, control.is_default, control.health) == ("control", True, "ready")
    assert (control.traffic.percentile, control.traffic.effective, control.traffic.served) == (0, 90, 100)
    assert (treatment.traffic.percentile, treatment.traffic.effective, treatment.traffic.served) == (10, 10, 0)
    assert control.replicas is not None
    assert (control.replicas.ready, control.replicas.wanted, control.replicas.restarts) == (1, 1, 2)
    assert (treatment.health, treatment.cause, treatment.digest) == ("not_ready", "it starts", "sha256:" + "a" * 64)
    assert (control.created_by, control.created_run, control.created) == ("maria@laptop", None, T0)
    assert treatment.created_run == run_of_author(f"{RUN}/deploy")


def test_what_is_not_known_is_not_shown_as_a_number() -> None:
    shown = overview(history()[1:], versions={}, weight_ppm={})
    assert [version.health for version in shown.versions] == ["missing", "missing"]
    assert all(version.replicas is None and version.traffic.served is None for version in shown.versions)
    # The oldest revision that is kept has it already.
    assert shown.versions[0].created is None


def test_a_hold_is_shown_with_the_reason_of_whoever_has_put_it_on_hold() -> None:
    revisions = history()
    held = revisions[-1].endpoint.hold("v2a", owner=RUN, at=T0 + timedelta(hours=1))
    for endpoint, reason in ((held, "I look first (maria)."), (held, "a key was renewed")):
        after = Revision.after(endpoint.model_copy(update={"revision": len(revisions)}), Change(who="x", reason=reason))
        revisions.append(after)
    sentence = "v2a is on hold: promote it or roll it back. Why: I look first (maria)."
    assert overview(revisions).attention == sentence
    # The revision that began it is not kept any more.
    assert overview(revisions[4:]).attention == "v2a is on hold: promote it or roll it back."
    assert hold_reason(revisions[:3]) == ""


def test_who_needs_a_person_comes_first() -> None:
    revisions = history()
    held = revisions[-1].endpoint.hold("v2a", owner=RUN, at=T0 + timedelta(hours=1))
    on_hold = overview([*revisions[:-1], revisions[-1].model_copy(update={"endpoint": held})])
    asked = overview(revisions, looks_of(revisions, decision_line("ask", 5)))
    failed = overview(
        revisions, versions={"v2a": VersionStatus(name="v2a", ready=False, failed=True, cause="it crashes")}
    )
    trouble = overview(revisions, trouble="the router refuses the route")
    split = overview(revisions, looks_of(revisions, look_line(1, 10, outcome=Outcome.SPLIT_IS_WRONG)))
    going_on = overview(revisions)
    steady = overview(revisions[:1])
    away = unread_endpoint("ml", "digits", "it does not answer", going_on)

    ordered = sorted([steady, going_on, away, split, trouble, failed, on_hold, asked], key=by_urgency)
    assert [one.state for one in ordered] == [
        "needs_person", "on_hold", "trouble", "trouble", "trouble", "unknown", "rolling_out", "steady",
    ]  # fmt: skip
    assert "promote it or roll it back" in (on_hold.attention or "")
    assert failed.attention == "v2a does not become ready: it crashes"
    assert (away.problem, away.versions) == ("it does not answer", going_on.versions)
    assert unread_endpoint("ml", "new", "it does not answer", None).versions == ()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ((), "the first look at 10 %"),
        ((look_line(1, 100, needing(412)),), "another 412 requests"),
        ((look_line(1, 100, needing(412)), look_line(11, 560, needing(412))), "another 412 requests, about 9 min"),
        ((look_line(1, 100, needing(None)),), "more evidence; how much cannot be said yet"),
        ((look_line(1, 100, needing(1)),), "another request"),
        ((look_line(1, 100, outcome=Outcome.PASS),), "the least time at 10 %, or the next step"),
        ((look_line(1, 100, outcome=Outcome.FAIL),), "the roll-back"),
        ((look_line(1, 100, outcome=Outcome.CANNOT_SEE),), "evidence that can be judged: because"),
        ((look_line(1, 100, waits=("an alarm is near",)),), "an alarm is near"),
        ((look_line(1, 100),), "more evidence"),
        ((decision_line("ask", 5),), "a person's answer to the question of 2026-01-05 12:05 UTC, in Required Actions"),
        ((decision_line("ask", 5), decision_line("approve", 6)), "the first look at 10 %"),
        (
            (b"damaged", b"x" * 300_000, look_line(-5, 9), decision_line("ask", 5, version="v3a")),
            "the first look at 10 %",
        ),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_a_rollout_says_what_it_waits_for(lines: tuple[bytes, ...], sentence: str) -> None:
    revisions = history()
    rollout = overview(revisions, looks_of(revisions, *lines)).rollout
    assert rollout is not None
    assert rollout.waiting_for == sentence
    assert (rollout.step, rollout.run) == ("10 %", run_of_owner(RUN))


def test_before_its_first_share_a_rollout_waits_for_its_version() -> None:
    rollout = overview(history(percent=0.0)).rollout
    assert rollout is not None
    assert rollout.waiting_for == "the version to be ready, and its first share"


def test_a_rollout_that_must_not_go_on_unattended_says_so() -> None:
    rollout = overview(history(on_silence=OnSilence.ROLL_BACK)).rollout
    assert rollout is not None
    assert rollout.silence == "If nobody looks for 30 min, its traffic is taken back."


def test_control_characters_of_strangers_do_nothing() -> None:
    assert overview(history(), trouble="\x1b[2Jgone").trouble == r"\x1b[2Jgone"


def test_control_characters_in_what_a_rollout_waits_for_do_nothing() -> None:
    revisions = history()
    looks = looks_of(revisions, look_line(5, 100, needing(400), waits=("the mean of a\x1b[2Jb",)))
    rollout = overview(revisions, looks).rollout
    assert rollout is not None
    assert rollout.waiting_for == r"the mean of a\x1b[2Jb"


@pytest.mark.parametrize(
    ("who", "found"),
    [
        ("weekly/run-1/group.task", ("weekly", "run-1", "group.task")),
        ("weekly/run-1[0]/task", ("weekly", "run-1", "task")),
        ("maria@laptop", None),
        ("https://sts.example/user@host", None),
        ("", None),
    ],
)
def test_the_run_of_a_task_is_told_from_a_person(who: str, found: tuple[str, str, str] | None) -> None:
    run = run_of_author(who)
    assert (None if run is None else (run.dag_id, run.run_id, run.task_id)) == found


def test_history_says_what_each_revision_has_changed_newest_first() -> None:
    newest, claimed, first = history_entries(history())
    assert newest.what == "v1a: 100 % → 90 %; v2a: 0 % → 10 %"
    assert claimed.what == "v2a added; rollout of v2a begins"
    assert (first.what, first.who, first.run) == ("first revision", "maria@laptop", None)
    promoted = history()[-1].endpoint.promote("v2a").release("v2a").update_version("v1a", description="old")
    later = Revision.after(promoted, Change(who="x", reason=""))
    assert history_entries([*history(), later])[0].what == (
        "v1a: 90 % → 0 %; v2a: 10 % → 100 %; v2a is control; rollout of v2a ends; settings of v1a"
    )
    assert history_entries(history()[1:])[-1].what == "oldest revision that is kept"


def test_every_outcome_has_a_sentence_and_an_explanation() -> None:
    assert set(SENTENCES) == set(Outcome)
    for outcome in Outcome:
        assert verdict_sentence(outcome, treatment="v2a", control="v1a").endswith(".")
        alarm = Claim("errors are higher", "alarm", 30.0, 20.0, True)
        explained = verdict_explanation(Verdict(outcome, (alarm,), "", 90, 10))
        assert explained[0].startswith("It rests on 10 requests")
        assert any("errors are higher" in sentence for sentence in explained)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (59, "59 s"), (540, "9 min"), (5_400, "2 h"), (200_000, "2 d")]
)
def test_durations_are_rough(seconds: int, text: str) -> None:
    assert about_duration(timedelta(seconds=seconds)) == text


def test_where_more_requests_do_not_help_no_number_of_them_is_promised() -> None:
    needs = Claim("requests refused for lack of room are below 5 %", "pass", 1.0, 20.0, False, needed_requests=30)
    room = "3 % of the treatment's requests found no room at it: give it more replicas"
    verdict = Verdict(Outcome.NOT_ENOUGH_EVIDENCE, (needs,), no_pass=(room,))

    held = waiting_sentence(RecentLooks(verdict=verdict), step="10 %", held=None)
    free = waiting_sentence(RecentLooks(verdict=Verdict(verdict.outcome, (needs,))), step="10 %", held=None)

    assert (held, free) == (room, "another 30 requests")
