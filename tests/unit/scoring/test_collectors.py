"""The two collectors of the old service, as its scripts call them.

What is expected of `azureml.monitoring` and `azureml.ai.monitoring` was seen of the real packages, azureml-monitoring
0.1.0a21 and azureml-ai-monitoring 1.0.0.
"""

import datetime
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlled_rollout_scoring import capture as capture_module
from controlled_rollout_scoring import collectors
from controlled_rollout_scoring.capture import CURRENT, Capture, Identity
from controlled_rollout_scoring.collectors.v1 import HEADERS, ModelDataCollector, seconds_of, timestamp_of
from controlled_rollout_scoring.collectors.v2 import BasicCorrelationContext, Collector, CorrelationContext
from controlled_rollout_scoring.spool import Spool
from tests.unit.scoring.spool_reader import Record, counts, records


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The spool of a process that captures."""
    folder = tmp_path / "spool"
    own = Spool(str(folder), max_bytes=100_000_000)
    capture = Capture(own, share=1.0, max_body_bytes=10_000)
    monkeypatch.setattr(capture_module, "active", lambda: capture)
    monkeypatch.setenv("CAPTURE_ENDPOINT", "digits")
    yield folder
    own.close()


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    """What tests of other modules have scored in this thread is over."""
    token = CURRENT.set(None)
    yield
    CURRENT.reset(token)


@pytest.fixture
def request_id() -> Iterator[str]:
    """The id of the request that this thread scores."""
    token = CURRENT.set(Identity("r-1", "order 7", is_kept=True, is_addressed=True))
    yield "r-1"
    CURRENT.reset(token)


def rows_of(record: Record) -> Any:
    return json.loads(record.bodies)


# Where they are imported from


@pytest.fixture
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "azureml"]:
        monkeypatch.delitem(sys.modules, name)
    collectors.install()
    collectors.install()


def imported() -> list[object]:
    """Import the collectors in the ways in which scripts do, and return them."""
    space: dict[str, Any] = {}
    exec(  # noqa: S102 - the import statements of scripts
        "import azureml.monitoring\n"
        "import azureml.ai.monitoring as monitoring\n"
        "from azureml.monitoring.modeldatacollector import ModelDataCollector\n"
        "from azureml.ai.monitoring.collector import Collector\n"
        "from azureml.ai.monitoring.context import BasicCorrelationContext, CorrelationContext\n"
        "found = [azureml.monitoring.ModelDataCollector, monitoring.Collector, ModelDataCollector, Collector,\n"
        "         BasicCorrelationContext, CorrelationContext]\n",
        space,
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "azureml"]:
        del sys.modules[name]
    found: list[object] = space["found"]
    return found


def test_scripts_import_them_where_their_packages_are_not_installed(fresh_imports: None, tmp_path: Path) -> None:
    assert imported() == [
        ModelDataCollector,
        Collector,
        ModelDataCollector,
        Collector,
        BasicCorrelationContext,
        CorrelationContext,
    ]
    assert sum(isinstance(finder, collectors.Collectors) for finder in sys.meta_path) == 1


def test_scripts_import_them_where_their_packages_are_installed_and_all_others_of_that_name_stay(
    fresh_imports: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("azureml/monitoring", "azureml/ai", "azureml/ai/monitoring", "azureml/core"):
        (tmp_path / package).mkdir(parents=True)
        broken = "monitoring" in package
        (tmp_path / package / "__init__.py").write_text("raise ImportError('libxml++')" if broken else "NAME = 'own'")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert imported()[:2] == [ModelDataCollector, Collector]
    spec = importlib.util.find_spec("azureml.core")
    assert spec is not None
    assert spec.origin == str(tmp_path / "azureml" / "core" / "__init__.py")


def test_other_packages_of_that_name_are_found_in_folders_that_a_script_adds_later(
    fresh_imports: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec("import azureml.monitoring")  # noqa: S102 - the import statement of a script
    (tmp_path / "azureml").mkdir()
    (tmp_path / "azureml" / "core.py").touch()
    assert importlib.util.find_spec("azureml.core") is None
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("azureml.core") is not None


# The first one


def test_inputs_and_predictions_are_kept_with_the_correlations_that_join_them(spool: Path, request_id: str) -> None:
    inputs = ModelDataCollector("credit", designation="inputs", feature_names=["age", "income"])
    predictions = ModelDataCollector("credit", designation="predictions", feature_names=["label"])

    correlations = inputs.collect([41, 1_200.5], "order")
    assert correlations is not None
    assert predictions.collect(predictions.add_correlations([1], correlations)) is None

    assert list(correlations.values())[3:] == [1_440, "default/default/default", "digits", "credit", "default"]
    assert correlations["$aml_request_id"] == "r-1"
    assert correlations["$aml_dc_correlation_id"].startswith("order-")
    datetime.datetime.fromisoformat(correlations["$aml_dc_scoring_timestamp"])
    first, second = records(spool)
    assert (first.head["columns"], rows_of(first)) == (["age", "income"], [[41, 1_200.5]])
    assert (second.head["columns"], rows_of(second)) == (["label"], [[1]])
    for record, designation in ((first, "inputs"), (second, "predictions")):
        time = record.head.pop("time")
        assert timestamp_of(time) == correlations["$aml_dc_scoring_timestamp"]
        assert (
            record.head.items()
            >= {
                "kind": "collected",
                "collector": "v1",
                "id": "r-1",
                "correlation": correlations["$aml_dc_correlation_id"],
                "addressed": True,
                "collection": designation,
                "designation": designation,
                "model_name": "credit",
                "model_version": "default",
                "webservice_name": "digits",
                "workspace": "default/default/default",
                "rows": 1,
            }.items()
        )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([1, "a", None], [[1, "a", None]]),
        (np.array([1, 2]), [[1, 2]]),
        (np.array([[1.5, 2], [3, 4]]), [[1.5, 2.0], [3.0, 4.0]]),
        (np.array(7), [[7]]),
        ([[1, 2], [3, 4]], [[[1, 2], [3, 4]]]),
        ([np.float32(0.5), np.int64(3), np.array([1])], [[0.5, 3, [1]]]),
        ([datetime.datetime(2026, 1, 5, 12), datetime.date(2026, 1, 5)], [["2026-01-05T12:00:00", "2026-01-05"]]),
        ([{"a": 1}, {3}, b"x"], [[{"a": 1}, "{3}", "b'x'"]]),
        ([], [[]]),
    ],
)
def test_lists_and_arrays_become_rows(spool: Path, data: Any, expected: list[list[Any]]) -> None:
    ModelDataCollector("credit", collection_name="mine").collect(data)
    [record] = records(spool)
    assert rows_of(record) == expected
    assert (record.head["collection"], record.head["designation"]) == ("mine", "general")
    assert (record.head["id"], record.head["correlation"], record.head["columns"]) == ("", "", None)


@pytest.mark.parametrize("designation", ["predictions", "labels", "signals"])
@pytest.mark.parametrize("names", [["a", "b"], None])
def test_rows_of_several_inputs_are_kept_apart_by_their_correlations(
    spool: Path, designation: str, names: list[str] | None
) -> None:
    inputs = ModelDataCollector("credit", designation="inputs")
    others = ModelDataCollector("credit", designation=designation, feature_names=names)
    first, second = inputs.collect([1]), inputs.collect([2])
    data = np.concatenate(
        [
            others.add_correlations(np.array([[1, 2], [3, 4]]), first),
            others.add_correlations(np.array([5, 6]), second),
        ]
    )
    assert data.shape == (3, 10)
    others.collect(data)
    kept = records(spool)[2:]
    assert [rows_of(record) for record in kept] == [[[1, 2], [3, 4]], [[5, 6]]]
    assert first is not None
    assert second is not None
    assert [record.head["correlation"] for record in kept] == [
        correlations["$aml_dc_correlation_id"] for correlations in (first, second)
    ]
    assert [record.head["columns"] for record in kept] == [names, names]


def test_correlations_are_added_behind_the_rows_and_without_some_the_rows_are_as_they_were(spool: Path) -> None:
    collector = ModelDataCollector("credit", designation="predictions")
    correlations = {name: name for name in HEADERS}
    assert collector.add_correlations([1, 2], correlations) == [1, 2, *HEADERS]
    row = np.array([1.5, 2])
    assert collector.add_correlations(row, correlations).tolist() == [[1.5, 2.0, *HEADERS]]
    assert collector.add_correlations(row, None) is row


@pytest.mark.parametrize("data", ["text", None, (1, 2), {"a": 1}, 7])
def test_other_types_are_a_warning_and_not_kept(spool: Path, data: Any) -> None:
    collector = ModelDataCollector("credit", designation="predictions")
    with pytest.warns(UserWarning, match="collect failed: input data must be list, numpy array"):
        assert collector.collect(data) is None
    with pytest.warns(UserWarning, match="collect failed"):
        assert collector.add_correlations(data, dict.fromkeys(HEADERS)) is data
    assert not records(spool)


def test_data_that_no_record_can_be_made_of_is_counted_and_the_script_goes_on(spool: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    collector = ModelDataCollector("credit")
    assert collector.collect(circle) is None
    assert collector.collect([{(1, 2): 3}]) is None
    assert counts(spool) == (0, 0, 2)


def test_collected_data_above_the_bound_is_kept_as_its_size(spool: Path) -> None:
    ModelDataCollector("credit").collect(["x" * 20_000])
    [record] = records(spool)
    assert (record.head["kept"], record.head["size"], len(record.head["sha256"])) == (0, 20_006, 64)


def test_requests_outside_of_the_share_collect_nothing_and_get_their_correlations(spool: Path) -> None:
    token = CURRENT.set(Identity("r-2", "r-2", is_kept=False))
    try:
        assert ModelDataCollector("credit", "inputs").collect([1]) is not None
    finally:
        CURRENT.reset(token)
    assert not records(spool)
    assert counts(spool) == (0, 0, 0)


def test_unknown_designation_says_so_and_does_nothing(spool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ModelDataCollector("credit", "outputs").collect([1]) is None
    assert "Incorrect designation value. Supported values: 'default', 'inputs'" in capsys.readouterr().out
    assert not records(spool)


def test_version_of_the_model_is_the_highest_that_the_project_has(
    spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AML_APP_ROOT", str(tmp_path))
    for version in ("2", "10", "notes"):
        (tmp_path / "azureml-models" / "credit" / version).mkdir(parents=True)
    assert ModelDataCollector("credit").model_version == "10"
    assert ModelDataCollector("credit", model_version="3").model_version == "3"
    assert ModelDataCollector("other").model_version == "default"


@pytest.mark.parametrize(
    "timestamp", ["2026-11-28T16:54:05.489563", "2026-11-28T17:26:37.631981", "2026-11-28T16:54:05.999999"]
)
def test_a_time_of_the_old_service_is_the_same_when_it_is_written_again(timestamp: str) -> None:
    seconds = seconds_of(timestamp)

    assert seconds is not None
    assert timestamp_of(seconds) == timestamp


@pytest.mark.parametrize("timestamp", ["2026-11-28T16:54:05.489563", "2026-11-28T16:54:05"])
def test_times_of_the_old_service_are_utc(timestamp: str) -> None:
    seconds = seconds_of(timestamp)
    assert seconds is not None
    assert seconds == datetime.datetime.fromisoformat(timestamp + "+00:00").timestamp()
    assert timestamp_of(seconds).startswith(timestamp[:19])


@pytest.mark.parametrize("text", ["", "now", "2026-11-28", "2026-11-28T16:54:05.x", None, 5, "9999-99-99T00:00:00"])
def test_other_texts_are_no_times(text: object) -> None:
    assert seconds_of(text) is None


def test_nothing_is_collected_by_a_version_that_does_not_collect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capture_module, "active", lambda: None)
    collector = ModelDataCollector("credit", "inputs")
    assert "Data collection is not enabled: set collect_model_data=True" in capsys.readouterr().out
    assert collector.collect([1]) is None
    assert collector.add_correlations([1], None) == [1]
    errors: list[Exception] = []
    second = Collector(name="model_inputs", on_error=errors.append)
    assert str(second.collect("anything", BasicCorrelationContext(id="c-1"))) == "c-1"
    assert {str(error) for error in errors} == {"custom logging is not enabled, drop the data"}
    Collector(name="model_inputs").collect("anything")


# The second one; frames are in tests/local/test_script_collectors.py


def test_errors_of_the_second_collector_are_raised_or_handed_to_the_script(spool: Path) -> None:
    errors: list[Exception] = []
    with pytest.raises(TypeError, match=r"data type \(list\) not supported, supported types: pandas.DataFrame"):
        Collector(name="model_inputs").collect([1])
    with pytest.raises(Exception, match="collection name is not provided"):
        Collector(name="")
    collector = Collector(name="model_inputs", on_error=errors.append)
    context = collector.collect(np.array([1]))
    assert [type(error) for error in errors] == [TypeError]
    assert len(context.get_id()) == 36
    assert not records(spool)
