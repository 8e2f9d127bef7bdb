from datetime import timedelta
from typing import Any

import pytest

from controlled_rollout import ScanImageOperator
from controlled_rollout.errors import ArgumentError
from controlled_rollout.image.scan import ScanSettings, Severity
from controlled_rollout.operators.image_scan import scan_settings

IMAGE = "local/digits@sha256:" + "0" * 64


def settings(**arguments: Any) -> ScanSettings:
    return scan_settings(ScanImageOperator(task_id="scan", image=IMAGE, **arguments).arguments())


def test_without_arguments_findings_above_medium_stop_the_image() -> None:
    scan = settings()
    assert scan.policy.max_severity is Severity.MEDIUM
    assert scan.policy.accepted == frozenset()
    assert not scan.policy.only_fixed
    assert scan.policy.max_database_age == timedelta(days=5)
    assert scan.scanner is None
    assert scan.attach_bill


def test_arguments_may_be_the_text_that_templates_make_of_them() -> None:
    scan = settings(
        max_severity="High",
        accept="CVE-2026-1, ghsa-2 ,",
        only_fixed="True",
        max_database_age="7 d",
        scanner="grype",
        timeout="90 s",
        attach_bill="false",
    )
    assert scan.policy.max_severity is Severity.HIGH
    assert scan.policy.accepted == {"CVE-2026-1", "ghsa-2"}
    assert scan.policy.only_fixed
    assert scan.policy.max_database_age == timedelta(days=7)
    assert (scan.scanner, scan.timeout, scan.attach_bill) == ("grype", timedelta(seconds=90), False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_severity": "severe"},
        {"max_severity": "unknown"},
        {"scanner": "clair"},
        {"only_fixed": "perhaps"},
        {"max_database_age": "a week"},
        {"accept": [1]},
    ],
)
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))} = "):
        settings(**wrong)


def test_every_argument_may_be_a_template() -> None:
    operator = ScanImageOperator(task_id="scan", image="{{ ti.xcom_pull('build') }}")
    arguments = {"image", "max_severity", "accept", "only_fixed", "max_database_age", "scanner", "timeout"}
    assert arguments | {"attach_bill", "conn_id"} == set(operator.template_fields)
