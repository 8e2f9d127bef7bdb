import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_scoring.settings import Address, CaptureSettings, SettingError, Settings, bound_address


@pytest.fixture
def contract(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "score.py").touch()
    return {"AML_APP_ROOT": str(tmp_path), "AZUREML_ENTRY_SCRIPT": "score.py"}


def test_defaults_are_the_ones_of_the_old_service(contract: dict[str, str]) -> None:
    settings = Settings.from_environment(contract)

    assert (settings.workers, settings.slots) == (1, 1)
    assert (settings.max_wait_s, settings.scoring_timeout_s) == (0.5, 60.0)
    assert settings.max_body_bytes == 100_000_000


def test_milliseconds_become_seconds(contract: dict[str, str]) -> None:
    settings = Settings.from_environment(
        {**contract, "SCORING_TIMEOUT_MS": "1500", "MAX_REQUEST_WAIT_TIME_MS": "20", "DRAIN_TIMEOUT_S": "7"}
    )

    assert (settings.scoring_timeout_s, settings.max_wait_s, settings.drain_timeout_s) == (1.5, 0.02, 7.0)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "٣", " 1", "9" * 13, "9" * 5000])
def test_invalid_number_is_refused_with_its_name(contract: dict[str, str], value: str) -> None:
    with pytest.raises(SettingError, match="WORKER_COUNT="):
        Settings.from_environment({**contract, "WORKER_COUNT": value})


def test_unknown_level_of_the_log_is_refused_and_a_known_one_may_be_in_small_letters(contract: dict[str, str]) -> None:
    Settings.from_environment({**contract, "AZUREML_LOG_LEVEL": "info"})
    with pytest.raises(SettingError, match="AZUREML_LOG_LEVEL='loud' is not known: choose one of DEBUG, INFO"):
        Settings.from_environment({**contract, "AZUREML_LOG_LEVEL": "loud"})


def test_nothing_is_captured_without_a_spool(contract: dict[str, str]) -> None:
    assert Settings.from_environment({**contract, "CAPTURE_SHARE": "nonsense"}).capture is None


def test_capture_has_its_settings(contract: dict[str, str]) -> None:
    capture = {
        "CAPTURE_SPOOL": "/spool",
        "CAPTURE_SHARE": "0.25",
        "CAPTURE_MAX_BODY_BYTES": "100",
        "CAPTURE_SPOOL_BYTES": "2000",
        "CAPTURE_ENDPOINT": "digits",
        "CAPTURE_VERSION": "blue",
        "CAPTURE_REPLICA": "blue-1",
    }
    read = Settings.from_environment(contract | capture).capture
    assert read == CaptureSettings("/spool", 0.25, 100, 2_000, 1, "digits", "blue", "blue-1")


@pytest.mark.parametrize(
    "wrong",
    [{"CAPTURE_SPOOL": "relative"}, {"CAPTURE_MAX_BODY_BYTES": "0"}, {"CAPTURE_SPOOL_BYTES": "1.5"}]
    + [{"CAPTURE_SHARE": text} for text in ("0", "-1", "1.01", "nan", "inf", "half", "9" * 5_000)],
)
def test_setting_of_capture_that_is_not_valid_is_refused_with_its_name(
    contract: dict[str, str], wrong: dict[str, str]
) -> None:
    [name] = wrong
    with pytest.raises(SettingError, match=f"^{name}=") as caught:
        Settings.from_environment({**contract, "CAPTURE_SPOOL": "/spool", **wrong})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/a/b.sock", Address(path="/a/b.sock")),
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("[::1]:0", Address(host="::1", port=0)),
        ("localhost:65535", Address(host="localhost", port=65535)),
    ],
)
def test_address_survives_parsing_and_formatting(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "80", ":80", "unix:", "unix:a.sock", "host:", "host:65536", "host:-1", "host:٣"])
def test_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="address"):
        Address.parse(text)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        Address.parse(text)
    except SettingError:
        pass


def test_port_0_binds_a_free_port() -> None:
    with Address.parse("127.0.0.1:0").bind() as listener:
        assert bound_address(listener).port > 0


def test_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(SettingError, match="Address already in use"):
        Address(path=str(path)).bind()

    assert path.read_text() == "kept"


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="too long"):
        Address(path=str(tmp_path / ("x" * 200))).bind()


def test_port_in_use_is_refused_even_by_the_same_user() -> None:
    with Address.parse("127.0.0.1:0").bind() as first:
        first.listen()
        with pytest.raises(SettingError, match="already in use"):
            bound_address(first).bind()
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
