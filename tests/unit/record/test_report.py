"""A rollout's report out of its record: what is in it, and what is refused."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.cli import main
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.gate import Bin, Claim, Counts, Gate, Outcome, Verdict, verdict_to_dict
from controlled_rollout.record import Decision, tail
from controlled_rollout.record.picture import draw
from controlled_rollout.record.summary import spans_of, summarize
from controlled_rollout.record.text import text_report
from controlled_rollout.workspace import Workspace
from tests.unit.record_lines import MINUTE, T0, append, bins


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.local(tmp_path)
    steps = [("deploy", 0, 0.0), ("shift", 1, 10.0)]
    for step, minute, share in steps:
        record.append(workspace, decision(step, minute, share))
    all_bins = bins(40, treatment_errors=0.2)
    for number in (2, 10, 20):
        append(workspace, all_bins[:number])
    append(workspace, all_bins[:20], lag=timedelta(minutes=9), at=T0 + 21 * MINUTE)
    append(workspace, all_bins)
    record.append(workspace, decision("roll_back", 44, 0.0))
    return workspace


def decision(step: str, minute: float, share: float) -> Decision:
    values = {
        "endpoint": "digits",
        "version": "v2a",
        "who": "weekly/run-1",
        "reason": f"because: {step}",
        "share": share,
    }
    return Decision.model_validate({"time": T0 + minute * MINUTE, "step": step, **values})


def test_the_summary_is_what_the_record_tells(workspace: Workspace) -> None:
    summary = summarize(record.read(workspace, "digits"))

    assert (summary.version, summary.control, summary.end) == ("v2a", "v1a", "rolled back")
    assert [step.label for step in summary.steps] == ["deploy", "10 %", "roll back"]
    assert len(summary.bins) == 40
    assert [look.verdict.outcome.value for look in summary.looks][-2:] == ["cannot_see", "fail"]


def test_the_text_has_steps_traffic_and_evidence_with_thresholds(workspace: Workspace) -> None:
    text = text_report(summarize(record.read(workspace, "digits")))

    assert text.startswith("digits: v2a against v1a, 2026-01-05 12:00:00 to 12:44:00 UTC, rolled back\n")
    for words in ("because: roll_back", "10 %", "beyond p95", "cannot see", "threshold", "errors are higher", "fail: "):
        assert words in text
    assert max(map(len, text.splitlines()[:-1])) < 160


@pytest.mark.parametrize("most", [1, 7, 24, 1000])
def test_spans_hold_every_request_once(workspace: Workspace, most: int) -> None:
    summary = summarize(record.read(workspace, "digits"))

    spans = spans_of(summary, most=most)

    assert len(spans) <= most
    assert sum(span.control.requests for span in spans) == sum(bin_.control.requests for bin_ in summary.bins)
    assert sum(span.treatment.errors for span in spans) == sum(bin_.treatment.errors for bin_ in summary.bins)


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_picture_is_drawn(
    workspace: Workspace, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"rollout{ending}"

    assert main(["report", "digits", "--root", str(workspace.root), "--picture", str(file)]) == 0

    assert "drawn: " in capsys.readouterr().err
    head = file.read_bytes()[:300]
    assert head.startswith(b"\x89PNG") if ending == ".png" else b"<svg" in file.read_bytes()[:1000]


def test_what_somebody_wrote_as_a_reason_does_not_act_on_the_readers_terminal(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    written = decision("promote", 50, 100.0).model_copy(update={"reason": "\x1b[2J\x1b]0;all good\x07 \u202efdp.exe"})
    record.append(workspace, written)

    assert main(["report", "digits", "--root", str(workspace.root)]) == 0
    assert main(["report", "digits", "--root", str(workspace.root), "--version", "\x1b[2J"]) == 1

    output = capsys.readouterr()
    assert r"\x1b[2J\x1b]0;all good\x07 \u202efdp.exe" in output.out
    assert not {character for character in output.out + output.err if not character.isprintable()} - {"\n"}


def append_label_looks(workspace: Workspace) -> None:
    """Append looks at labels, a week after the rollout: three that wait, and one that passes."""
    day = 24 * 60
    for number, outcome in enumerate((Outcome.NOT_ENOUGH_EVIDENCE,) * 3 + (Outcome.PASS,)):
        claim = Claim("accuracy is not worse", "pass", 7.0 * (number + 1), 20.0, outcome is Outcome.PASS)
        verdict = Verdict(outcome, (claim,), f"reason {number}", 900, 100)
        one = decision("judge_labels", 7 * day + number, 100.0)
        values = {"outcome": outcome.value, "verdict": verdict_to_dict(verdict), "reason": verdict.reason}
        record.append(workspace, one.model_copy(update=values))


def test_the_report_ends_with_the_last_look_at_labels_and_has_a_step_where_their_outcome_was_a_new_one(
    workspace: Workspace,
) -> None:
    append_label_looks(workspace)
    summary = summarize(record.read(workspace, "digits"))
    text = text_report(summary)

    assert [step.label for step in summary.steps][3:] == ["labels: not enough evidence", "labels: pass"]
    assert "2026-01-12 12:03  labels: pass" in text
    assert "By labels, 2026-01-12 12:03:00 UTC" in text
    assert text.rstrip().endswith("pass: reason 3")
    assert "treatment 100 requests, control 900" in text
    assert (summary.end, len(summary.bins)) == ("rolled back", 40)


def test_labels_that_come_a_week_later_do_not_stretch_the_picture(workspace: Workspace, tmp_path: Path) -> None:
    append_label_looks(workspace)
    draw(summarize(record.read(workspace, "digits")), tmp_path / "rollout.svg")
    names = re.findall("<!-- (.*?) -->", (tmp_path / "rollout.svg").read_text())
    assert "roll back" in names
    assert "labels: pass" not in names


def test_picture_with_unknown_suffix_or_without_looks_is_an_error(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "digits", "--root", str(workspace.root), "--picture", str(tmp_path / "a.doc")]) == 1
    assert ".png" in capsys.readouterr().err
    with pytest.raises(ControlledRolloutError, match="no look at version 'v9z'"):
        summarize(record.read(workspace, "digits"), version="v9z")


def test_a_rollout_by_hand_is_a_line_for_each_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.local(tmp_path)
    for number, step in enumerate(("deploy", "shift", "roll_back")):
        record.append(workspace, decision(step, number, 10.0 * (step == "shift")))

    assert main(["report", "digits", "--root", str(tmp_path)]) == 0

    headings, *steps = capsys.readouterr().out.splitlines()
    assert headings.split() == ["time", "(UTC)", "version", "step", "share", "by", "reason"]
    assert [re.split("  +", line)[1:4] for line in steps] == [
        ["v2a", "deploy", "0 %"],
        ["v2a", "shift", "10 %"],
        ["v2a", "roll back", "0 %"],
    ]
    assert main(["report", "digits", "--version", "v9z", "--root", str(tmp_path)]) == 1
    assert "no look at version 'v9z'" in capsys.readouterr().err


def test_rollout_without_latency_and_with_a_gap_is_told_and_drawn(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    gate = Gate(latency_quantiles=())
    without_latency = [
        Bin(one.start, Counts(one.control.requests, 1), Counts(one.treatment.requests, 0), one.share)
        for one in bins(60)
    ]
    append(workspace, [*without_latency[:20], *without_latency[40:]], gate=gate, thresholds_ms=())

    summary = summarize(record.read(workspace, "digits"))
    draw(summary, tmp_path / "rollout.svg")

    assert summary.shown_quantile is None
    assert "beyond" not in text_report(summary)
    assert "slower than" not in (tmp_path / "rollout.svg").read_text()


def test_look_whose_verdict_is_damaged_is_left_out(workspace: Workspace) -> None:
    file = workspace.records_folder / "digits.jsonl"
    lines = file.read_text().splitlines()
    looks = len(summarize(record.read(workspace, "digits")).looks)
    lines[3] = json.dumps({**json.loads(lines[3]), "verdict": {"outcome": "perhaps"}})
    file.write_text("".join(f"{line}\n" for line in lines))

    assert len(summarize(record.read(workspace, "digits")).looks) == looks - 1


def test_record_without_bins_has_no_spans(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    append(workspace, [])

    assert spans_of(summarize(record.read(workspace, "digits")), most=10) == []


def test_forgotten_records_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_RECORDS", 1)
    first, second = Workspace.local(tmp_path / "1"), Workspace.local(tmp_path / "2")
    for number in range(1, 4):
        for workspace in (first, second):
            append(workspace, bins(number))

    kept = [one.evidence["bins"]["keep"] for one in record.read(first, "digits") if one.evidence]
    assert kept == [0, 1, 2]
