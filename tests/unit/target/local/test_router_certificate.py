"""What the router serves stays when its new files are wrong, and what is wrong is said."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local.certificate_pair import CertificatePair
from controlled_rollout.target.local.router_certificate import RouterCertificate
from controlled_rollout.workspace import Workspace
from tests.certificates import Authority, Pair

AUTHORITY = Authority()


@dataclass
class Router:
    """Takes what it is given, or does not."""

    takes: bool = True
    disk_is_full: bool = False
    given: list[CertificatePair] = field(default_factory=list)

    async def serve(self, pair: CertificatePair) -> bool:
        if self.disk_is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.takes:
            self.given.append(pair)
        return self.takes


@dataclass
class Clock:
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Bench:
    """A pair of files, the router that gets them, and a clock."""

    folder: Path
    router: Router = field(default_factory=Router)
    clock: Clock = field(default_factory=Clock)
    authority: Path | None = None

    def write(self, pair: Pair) -> tuple[Path, Path]:
        return pair.write(self.folder)

    def of_files(self) -> RouterCertificate:
        return self._made(self.folder / "tls.crt", self.folder / "tls.key")

    def own(self) -> RouterCertificate:
        return self._made(None, None)

    def _made(self, certificate: Path | None, key: Path | None) -> RouterCertificate:
        return RouterCertificate(
            certificate,
            key,
            own_folder=self.folder / "own",
            authority=self.authority,
            host="127.0.0.1",
            serve=self.router.serve,
            now=self.clock,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def remove(bench: Bench) -> None:
    (bench.folder / "tls.key").unlink()


def open_to_others(bench: Bench) -> None:
    bench.write(AUTHORITY.pair())
    (bench.folder / "tls.key").chmod(0o640)


def replace_half(bench: Bench) -> None:
    (bench.folder / "tls.crt").write_bytes(AUTHORITY.pair().certificate)


def replace_by_an_ended_one(bench: Bench) -> None:
    bench.write(AUTHORITY.pair(lasts=timedelta(seconds=-1)))


def replace_by_a_large_file(bench: Bench) -> None:
    (bench.folder / "tls.crt").write_bytes(b"x" * 1_000_001)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "its key cannot be read (No such file or directory)"),
        (open_to_others, "others than its owner have access to the key (mode 0640): `chmod 600"),
        (replace_half, "the key does not fit the first certificate"),
        (replace_by_an_ended_one, "it ended on"),
        (replace_by_a_large_file, "more than 1 MB"),
    ],
)
async def test_a_wrong_new_pair_is_named_and_the_one_of_before_stays(
    bench: Bench, damage: Callable[[Bench], None], message: str
) -> None:
    bench.write(AUTHORITY.pair())
    certificate = bench.of_files()
    await certificate.start()
    damage(bench)

    await certificate.renew_or_reload()

    [problem] = certificate.problems()
    assert message in problem
    assert "is still served" in problem
    assert certificate.warnings() == [problem]
    assert len(bench.router.given) == 1

    bench.write(AUTHORITY.pair())
    (bench.folder / "tls.key").chmod(0o600)
    await certificate.renew_or_reload()
    assert not certificate.warnings()
    assert len(bench.router.given) == 2


async def test_a_pair_is_given_to_the_router_once(bench: Bench) -> None:
    bench.write(AUTHORITY.pair())
    certificate = bench.of_files()
    await certificate.start()

    await certificate.renew_or_reload()

    assert len(bench.router.given) == 1


async def test_a_wrong_first_pair_starts_nothing(bench: Bench) -> None:
    open_to_others(bench)

    with pytest.raises(
        WorkspaceError, match=r"the certificate .*tls\.crt with the key .*tls\.key cannot be used: others"
    ):
        await bench.of_files().start()
    assert not bench.router.given


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (Router(takes=False), "has not taken it over yet"),
        (Router(disk_is_full=True), "cannot be written for the router (No space left on device)"),
    ],
    ids=["not taken over", "disk full"],
)
async def test_a_pair_that_the_router_has_not_taken_over_is_tried_again(
    bench: Bench, trouble: Router, message: str
) -> None:
    bench.write(AUTHORITY.pair())
    certificate = bench.of_files()
    await certificate.start()
    bench.write(AUTHORITY.pair())
    bench.router.takes, bench.router.disk_is_full = trouble.takes, trouble.disk_is_full

    await certificate.renew_or_reload()
    assert message in certificate.problems()[0]

    bench.router.takes, bench.router.disk_is_full = True, False
    await certificate.renew_or_reload()
    assert not certificate.problems()
    assert len(bench.router.given) == 2


async def test_the_end_is_announced_30_days_before_and_said_when_it_has_come(bench: Bench) -> None:
    bench.write(AUTHORITY.pair(lasts=timedelta(days=40)))
    certificate = bench.of_files()
    await certificate.start()
    assert not certificate.warnings()

    bench.clock.now += timedelta(days=11, minutes=1)
    [warning] = certificate.warnings()
    assert "in 28 days: replace" in warning
    assert not certificate.problems()

    bench.clock.now += timedelta(days=30)
    [problem] = certificate.problems()
    assert "callers refuse it" in problem


async def test_an_own_certificate_is_renewed_long_before_it_would_be_announced(bench: Bench) -> None:
    certificate = bench.own()
    await certificate.start()

    for _ in range(20):
        bench.clock.now += timedelta(days=10)
        await certificate.renew_or_reload()
        assert not certificate.warnings()

    assert len(bench.router.given) > 2
    assert certificate.authority == bench.folder / "own" / "ca.crt"


async def test_an_own_certificate_that_cannot_be_renewed_is_announced_7_days_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = bench.own()
    await certificate.start()

    def disk_full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("controlled_rollout.target.local.own_certificate.atomic_files.write_atomically", disk_full)
    bench.clock.now += timedelta(days=84)
    await certificate.renew_or_reload()

    first, second = certificate.warnings()
    assert "No space left on device" in first
    assert "in 5 days: it should have been renewed" in second


async def test_callers_check_a_given_certificate_against_the_named_authority_or_against_itself(bench: Bench) -> None:
    bench.write(AUTHORITY.pair())
    certificate = bench.of_files()
    await certificate.start()
    assert certificate.authority is None

    bench.authority = bench.folder / "ca.crt"
    named = bench.of_files()
    await named.start()
    assert named.authority == bench.folder / "ca.crt"


def test_a_workspace_without_tls_has_no_certificate(tmp_path: Path) -> None:
    assert RouterCertificate.of(Workspace.local(tmp_path), "127.0.0.1", Router().serve) is None
