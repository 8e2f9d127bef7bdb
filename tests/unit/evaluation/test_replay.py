"""A record is replayed to the same verdicts, and whatever was changed in it is found."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout import record
from controlled_rollout.cli import main
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evidence import RouterCounts
from controlled_rollout.gate import Bin, Category, Counts, Gate, Mean, Moments, UserCounts
from controlled_rollout.record import bin_delta, storage, tail
from controlled_rollout.workspace import Workspace
from tests.examples import examples
from tests.unit.record_lines import MINUTE, T0, append, bins


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.local(tmp_path)


def lines(workspace: Workspace) -> list[str]:
    return (workspace.records_folder / "digits.jsonl").read_text().splitlines()


def rewrite(workspace: Workspace, new: list[str]) -> Path:
    file = workspace.records_folder / "digits.jsonl"
    file.write_text("".join(f"{line}\n" for line in new))
    return file


def test_every_look_is_replayed_to_the_verdict_that_was_given(workspace: Workspace) -> None:
    everything = bins(60, treatment_errors=0.2)
    before = bins(5, start=T0 - 5 * MINUTE)
    for number in (0, 1, 2, 10, 40, 60):
        append(workspace, everything[:number], baseline=before)

    replayed = list(replay(record.read(workspace, "digits")))

    assert [look.difference for look in replayed] == [""] * 6
    assert replayed[-1].verdict is not None
    assert replayed[-1].verdict.outcome == "fail"
    assert replayed[-1].look is not None
    assert replayed[-1].look.evidence.bins == everything
    assert replayed[-1].look.evidence.baseline == before


def test_users_of_a_look_are_in_its_line_and_replayed(workspace: Workspace) -> None:
    """What a gate by users has judged can be judged again, and needs nothing else."""
    users = (UserCounts(9, 1, slow=(4, 1)), UserCounts(3, 0, slow=(1, 0), above=0.05))
    counted = tuple(
        replace(one, control=replace(one.control, users=users), treatment=replace(one.treatment, users=users[:1]))
        for one in bins(40)
    )
    gate = Gate(unit="user", latency_quantiles=(0.5, 0.95))
    for number in (10, 40):
        append(workspace, counted[:number], gate=gate)

    first, last = replay(record.read(workspace, "digits"))

    assert (first.difference, last.difference) == ("", "")
    assert last.look is not None
    assert last.look.evidence.bins == counted
    assert last.verdict is not None
    assert (last.verdict.control_requests, last.verdict.treatment_requests) == (40 * 12, 40 * 9)


def test_a_line_holds_only_the_bins_that_the_look_before_did_not_have(workspace: Workspace) -> None:
    everything = bins(150)
    for number in range(1, 151):
        append(workspace, everything[:number])

    sizes = [len(line) for line in lines(workspace)]
    assert max(sizes[1:]) < 3_000
    assert max(sizes[-50:]) < 1.2 * max(sizes[1:50])


def test_a_bin_that_changes_later_is_written_again_with_those_after_it(workspace: Workspace) -> None:
    first = bins(10)
    changed = (*first[:7], replace(first[7], control=Counts(91, 0, (45, 4))), *first[8:])
    append(workspace, first)
    append(workspace, changed)

    second = json.loads(lines(workspace)[1])["evidence"]["bins"]
    assert (second["keep"], len(second["add"])) == (7, 3)
    assert [look.difference for look in replay(record.read(workspace, "digits"))] == ["", ""]


def test_another_process_carries_a_series_on(workspace: Workspace) -> None:
    everything = bins(20)
    append(workspace, everything[:10])
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=append, args=(workspace, everything[:15]))
    other.start()
    other.join()
    assert other.exitcode == 0
    append(workspace, everything)

    kept = [json.loads(line)["evidence"]["bins"]["keep"] for line in lines(workspace)]
    assert kept == [0, 10, 15]
    assert all(not look.difference for look in replay(record.read(workspace, "digits")))


def test_gates_with_other_settings_and_other_treatments_do_not_mix(workspace: Workspace) -> None:
    one, other = bins(10), bins(10, seed=2)
    for number in range(1, 11):
        append(workspace, one[:number])
        append(workspace, other[:number], version="v3b")
        append(workspace, one[:number], gate=Gate(latency_quantiles=(0.5, 0.95), alpha=0.01))

    replayed = list(replay(record.read(workspace, "digits")))
    assert len(replayed) == 30
    assert all(not look.difference for look in replayed)


# What is done to the lines of a record.
Damage = Callable[[list[str]], list[str]]


def changed(line: str, **fields: object) -> str:
    return json.dumps({**json.loads(line), **fields})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda recorded: [recorded[0], *recorded[2:]], "missing or was changed"),
        (lambda recorded: recorded[1:], "gate's settings, is missing"),
        (lambda recorded: [*recorded[:-1], changed(recorded[-1], outcome="pass")], "outcome pass, now"),
        (
            lambda recorded: [recorded[0].replace('"requests":90', '"requests":91', 1), *recorded[1:]],
            "missing or was changed",
        ),
        (lambda recorded: [*recorded[:-1], recorded[-1].replace('"e_value":', '"e_value":1', 1)], "errors are higher"),
        (
            lambda recorded: [*recorded[:-1], changed(recorded[-1], evidence=None)],
            "no evidence that its outcome could rest on",
        ),
        (lambda recorded: [*recorded[:-1], changed(recorded[-1], evidence={"series": "x"})], "cannot be read"),
        (
            lambda recorded: [*recorded[:-1], recorded[-1].replace('"name":"errors are higher"', '"name":"x"')],
            "claims [",
        ),
        (lambda recorded: [*recorded[:-1], changed(recorded[-1], verdict={"outcome": 3})], "not a verdict"),
        (
            lambda recorded: [*recorded[:-1], recorded[-1].replace('"treatment_requests":', '"treatment_requests":1')],
            "requests (",
        ),
        (lambda recorded: [*recorded[:-1], recorded[-1].replace('"start":', '"begin":')], "bins cannot be read"),
    ],
)
def test_changed_record_is_detected(
    workspace: Workspace, damage: Damage, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = bins(5)
    for number in range(1, 6):
        append(workspace, everything[:number])
    assert main(["replay", "digits", "--root", str(workspace.root)]) == 0
    assert "5 looks, all the same" in capsys.readouterr().out

    file = rewrite(workspace, damage(lines(workspace)))

    assert main(["replay", str(file)]) == 1
    assert problem in capsys.readouterr().out


def test_a_changed_gate_gives_other_verdicts_and_is_found(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    append(workspace, bins(60, treatment_errors=0.2))
    [line] = lines(workspace)
    document = json.loads(line)
    document["evidence"]["settings"]["gate"]["error_ratio"] = 1000.0
    file = rewrite(workspace, [json.dumps(document)])

    assert main(["replay", str(file)]) == 1
    assert "outcome fail, now" in capsys.readouterr().out


def test_a_look_that_found_the_treatment_down_is_replayed_to_its_failure(workspace: Workspace) -> None:
    assert append(workspace, bins(5)).outcome == "not_enough_evidence"
    assert append(workspace, bins(5), down="version 'v2a' has no ready replica").outcome == "fail"

    replayed = list(replay(record.read(workspace, "digits")))

    assert [look.difference for look in replayed] == ["", ""]
    assert replayed[-1].verdict is not None
    assert replayed[-1].verdict.reason == "version 'v2a' has no ready replica"


def test_looks_that_could_not_see_are_replayed_too(workspace: Workspace) -> None:
    assert append(workspace, bins(5), lag=timedelta(minutes=4)).outcome == "cannot_see"

    assert [look.difference for look in replay(record.read(workspace, "digits"))] == [""]


def test_counts_of_the_router_at_earlier_looks_come_from_the_record(workspace: Workspace) -> None:
    outcomes = []
    for minute in (6, 9, 13):
        counts = RouterCounts(T0 + minute * MINUTE, {"v1a": 50 * minute, "v2a": 5 * minute})
        # The store has nothing after the fifth minute: at the third look the first two lie behind that.
        decision = append(workspace, bins(5), at=T0 + max(5, minute - 3) * MINUTE, router=(counts,))
        outcomes.append(decision.outcome)

    assert outcomes == ["not_enough_evidence", "not_enough_evidence", "cannot_see"]
    last = list(replay(record.read(workspace, "digits")))[-1]
    assert last.difference == ""
    assert last.look is not None
    assert [counts.at for counts in last.look.router] == [T0 + minute * MINUTE for minute in (6, 9, 13)]


def test_a_full_file_is_put_aside_and_each_file_can_be_replayed_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_PART_BYTES", 40_000)
    monkeypatch.setattr(storage, "KEPT_PARTS", 2)
    everything = bins(60)
    for number in range(1, 61):
        append(workspace, everything[:number])

    parts = record.storage_of(workspace, "digits").parts()
    assert len(parts) == 3
    assert all(sum(map(len, part.lines())) < 40_000 for part in parts)
    for part in parts:
        replayed = list(replay(record.read_part(part)))
        assert replayed
        assert all(not look.difference for look in replayed)
    assert record.last(workspace, "digits", "v2a") is not None
    everything_kept = list(record.read(workspace, "digits"))
    assert [one.time for one in everything_kept] == sorted(one.time for one in everything_kept)


def test_a_line_cut_short_by_a_crash_is_found_by_the_next_writer_and_by_the_replay(workspace: Workspace) -> None:
    everything = bins(6)
    append(workspace, everything[:2])
    append(workspace, everything[:4])
    file = workspace.records_folder / "digits.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    tail._tails.clear()  # the process that wrote it is gone
    append(workspace, everything)

    replayed = list(replay(record.read(workspace, "digits")))
    assert [look.difference for look in replayed] == ["", ""]
    assert replayed[-1].look is not None
    assert replayed[-1].look.evidence.bins == everything


@examples(50)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=8))
def test_deltas_reproduce_the_bins_after_any_change_between_looks(cuts: list[tuple[int, int]]) -> None:
    writer, reader = bin_delta.BinFingerprints(), bin_delta.BinFingerprints()
    read_back: list[Bin] = []
    for number, seed in cuts:
        wanted = bins(number, seed=seed)
        delta = writer.delta_to(wanted)
        reader.apply(delta)
        read_back[delta.keep :] = bin_delta.bins_from_json(delta.add)
        assert tuple(read_back) == wanted
        assert reader.digest == delta.digest


def test_neither_a_file_nor_an_endpoint_is_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "letters", "--root", str(workspace.root)]) == 1
    assert "give one of the two" in capsys.readouterr().err
    assert main(["replay", "./nowhere.jsonl"]) == 1
    assert "there is no record" in capsys.readouterr().err


def test_metrics_of_the_author_s_are_recorded_and_replayed_too(workspace: Workspace) -> None:

    gate = Gate(
        latency_quantiles=(0.5, 0.95),
        means={"revenue": Mean(worse="lower", kql="AppEvents")},
        categories={"country": Category()},
    )

    def measured(counts: Counts, mean: float) -> Counts:
        return replace(counts, means={"revenue": Moments(10, mean, 1.5)}, categories={"country": {"CH": 3, "DE": 7}})

    everything = tuple(
        replace(one, control=measured(one.control, 2.0), treatment=measured(one.treatment, 0.1)) for one in bins(60)
    )
    for number in (10, 60):
        append(workspace, everything[:number], gate=gate)

    replayed = list(replay(record.read(workspace, "digits")))
    assert [look.difference for look in replayed] == ["", ""]
    assert replayed[-1].look is not None
    assert replayed[-1].look.evidence.bins == everything
    assert replayed[-1].verdict is not None
    assert "revenue is lower" in [claim.name for claim in replayed[-1].verdict.claims if claim.reached]


@pytest.mark.parametrize("arguments", [["README.md"], ["digits", "--version", "tow"]])
def test_where_there_is_no_look_nothing_is_said_to_be_the_same(
    arguments: list[str],
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append(workspace, bins(1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# Not a record\n")

    assert main(["replay", *arguments, "--root", str(workspace.root)]) == 1

    output = capsys.readouterr()
    assert "there is nothing to judge again" in output.err
    assert output.out == ""


def test_frozen_cuts_and_what_was_not_seen_of_the_data_are_recorded_and_replayed(workspace: Workspace) -> None:
    everything = bins(30, treatment_errors=0.01)
    append(workspace, everything[:10], cuts={"score": (1.0, 2.5)})
    blind = append(workspace, everything[:20], unseen="collected data of version 'v2a' is late")
    failing = append(workspace, bins(30, treatment_errors=0.9), unseen="collected data of version 'v2a' is late")
    assert (blind.outcome, blind.reason) == ("cannot_see", "collected data of version 'v2a' is late")
    assert failing.outcome == "fail"

    replayed = list(replay(record.read(workspace, "digits")))
    assert [look.difference for look in replayed] == [""] * 3
    looks = [look.look.evidence for look in replayed if look.look is not None]
    assert [(one.cuts, one.unseen != "") for one in looks] == [({"score": (1.0, 2.5)}, False), ({}, True), ({}, True)]
