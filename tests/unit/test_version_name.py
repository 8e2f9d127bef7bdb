from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.version import check_name
from controlled_rollout.version_name import version_of_run

TEXT = st.characters(codec="utf-8")


@dataclass
class Run:
    dag_id: str
    run_id: str
    run_after: datetime


RUN = Run("retrain_and_deploy", "manual__2026-01-05T03:00:00+00:00_Xy12", datetime(2026, 1, 5, 3, tzinfo=timezone.utc))  # noqa: UP017


@given(st.text(TEXT), st.text(TEXT), st.datetimes(datetime(1970, 1, 1), timezones=st.timezones()))
def test_every_run_gives_a_valid_name(dag_id: str, run_id: str, run_after: datetime) -> None:
    check_name(version_of_run(Run(dag_id, run_id, run_after)))


def test_a_retry_gives_the_same_name_and_another_run_of_the_same_second_another() -> None:
    assert version_of_run(RUN) == version_of_run(replace(RUN))
    assert version_of_run(RUN).startswith("v20260105t030000-")
    assert version_of_run(RUN) != version_of_run(replace(RUN, run_id="manual__2026-01-05T03:00:00+00:00_Zz34"))
    assert version_of_run(RUN) != version_of_run(replace(RUN, dag_id="another"))


def test_the_same_moment_in_another_time_zone_is_the_same_name() -> None:
    tokyo = RUN.run_after.astimezone(timezone(timedelta(hours=9)))
    assert version_of_run(replace(RUN, run_after=tokyo)) == version_of_run(RUN)
