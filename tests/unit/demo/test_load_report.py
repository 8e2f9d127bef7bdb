import random
from pathlib import Path

import pytest

from scripts.demo.load_report import LatencyHistogram, LoadReport, VersionReport, read_report, write_atomically


def test_a_quantile_of_the_histogram_is_within_two_per_cent_of_the_exact_one() -> None:
    latencies = [random.Random(n).lognormvariate(-6, 1) for n in range(5_000)]
    histogram = LatencyHistogram()
    for latency in latencies:
        histogram.add(latency)

    for q in (0.5, 0.95, 0.99):
        exact = 1000 * sorted(latencies)[int(q * len(latencies)) - 1]
        assert exact <= histogram.quantile_ms(q) <= exact * 1.021


def test_quantile_of_an_empty_histogram_is_zero() -> None:
    assert LatencyHistogram().quantile_ms(0.5) == 0


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = LoadReport(
        started=1.0,
        written=2.0,
        seconds=1.0,
        rate=100.0,
        versions={"first": VersionReport(requests=10, failures={"status 500": 2}, recent_requests=3)},
    )

    write_atomically(tmp_path / "load.json", report.model_dump_json())

    assert read_report(tmp_path / "load.json") == report
    assert (report.requests, report.failed, report.failed_of("first"), report.failed_of("other")) == (10, 2, 2, 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "load.json"]


def test_before_the_first_report_there_is_none(tmp_path: Path) -> None:
    assert read_report(tmp_path / "load.json") is None


def test_the_split_is_that_of_the_last_seconds() -> None:
    versions = {
        "first": VersionReport(requests=900, recent_requests=30),
        "second": VersionReport(requests=1, recent_requests=10),
    }
    report = LoadReport(started=0, written=0, seconds=1, rate=1, versions=versions)

    assert report.recent_split() == pytest.approx({"first": 75, "second": 25})
