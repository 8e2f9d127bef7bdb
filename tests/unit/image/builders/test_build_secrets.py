"""The settings of this machine that a build gets as secrets."""

from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_secrets import build_secrets

NOWHERE = Path("/nonexistent")


def settings(environment: dict[str, str], requirements: tuple[str, ...] = ()) -> list[str]:
    return build_secrets(requirements, environment, system=NOWHERE)["settings"].decode().splitlines()


def test_indexes_and_proxies_are_passed_on_and_nothing_else() -> None:
    given = {
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_INDEX_PRIVATE_PASSWORD": "it's secret",
        "https_proxy": "http://proxy.example:3128",
        "PIP_RETRIES": "9",
        "AWS_SECRET_ACCESS_KEY": "not yours",
        "UV_CACHE_DIR": "/home/me/cache",
        "PIP_FIND_LINKS": "/opt/wheels",
    }

    assert settings(given) == [
        "export PIP_RETRIES=9",
        "export UV_DEFAULT_INDEX=https://index.example/simple",
        """export UV_INDEX_PRIVATE_PASSWORD='it'"'"'s secret'""",
        "export https_proxy=http://proxy.example:3128",
    ]


def test_variables_that_requirements_name_are_passed_on() -> None:
    requirements = ("--extra-index-url https://${USER_NAME}:${TOKEN}@index.example/simple", "six")

    assert settings({"TOKEN": "t", "USER_NAME": "u", "OTHER": "o"}, requirements) == [
        "export TOKEN=t",
        "export USER_NAME=u",
    ]
    with pytest.raises(ImageError, match="the requirements name USER_NAME"):
        settings({"TOKEN": "t"}, requirements)


def test_files_of_this_machine_are_found_where_uv_and_pip_look_for_them(tmp_path: Path) -> None:
    for path, text in ((".config/uv/uv.toml", "uv"), (".netrc", "netrc"), (".config/pip/pip.conf", "pip")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "ca.crt").write_text("certificates")

    secrets = build_secrets((), {"HOME": str(tmp_path), "REQUESTS_CA_BUNDLE": str(tmp_path / "ca.crt")}, system=NOWHERE)

    assert {name: content for name, content in secrets.items() if name != "settings"} == {
        "uv.toml": b"uv",
        "netrc": b"netrc",
        "pip.conf": b"pip",
        "certificates": b"certificates",
    }
    assert "export SSL_CERT_FILE=/run/secrets/certificates" in secrets["settings"].decode()
    assert "export UV_CONFIG_FILE=/run/secrets/uv.toml" in secrets["settings"].decode()
    assert str(tmp_path) not in secrets["settings"].decode()


def test_files_that_this_machine_lacks_are_no_secrets(tmp_path: Path) -> None:
    secrets = build_secrets((), {"HOME": str(tmp_path), "SSL_CERT_FILE": str(tmp_path / "missing")}, system=NOWHERE)

    assert "certificates" not in secrets
    assert b"SSL_CERT_FILE" not in secrets["settings"]
