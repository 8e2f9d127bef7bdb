"""The certificate of a local workspace's router: read from its files, looked at again, and renewed if it is our own.

A new pair is checked before the router gets it. While the files are wrong the router goes on with the pair that it has,
and `problems` says what is wrong with the new one.
"""

import logging
import os
import stat
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local.certificate_pair import CertificatePair, read_pair
from controlled_rollout.target.local.own_certificate import OwnCertificate
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.workspace import Workspace

__all__ = ["RouterCertificate"]

log = logging.getLogger(__name__)

# A chain of a few certificates has some kilobytes.
MAX_BYTES: Final = 1_000_000
WARN_BEFORE: Final = timedelta(days=30)
# Our own is renewed 30 days before: so late only if that has failed for weeks.
WARN_BEFORE_OWN: Final = timedelta(days=7)


class RouterCertificate:
    """The certificate that a workspace's router serves, and what is wrong with its files.

    Args:
        certificate: The file of the certificate; None for the workspace's own certificate.
        key: The file of its key; None for the workspace's own certificate.
        own_folder: Where the workspace keeps its own certificate.
        authority: The file with the authority that callers of this workspace check a given certificate against; None
            for this machine's authorities.
        host: The address that the router listens on.
        serve: Gives a pair to the router; returns whether it has taken it over.
        now: The time.
    """

    def __init__(
        self,
        certificate: Path | None,
        key: Path | None,
        *,
        own_folder: Path,
        authority: Path | None,
        host: str,
        serve: Callable[[CertificatePair], Awaitable[bool]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        own = OwnCertificate(own_folder, host)
        self._own = None if certificate else own
        self._certificate = certificate or own.certificate
        self._key = key or own.key
        self._given_authority = authority
        self._serve = serve
        self._now = now
        self._served: CertificatePair | None = None
        self._served_content: tuple[bytes, bytes] | None = None
        self._problem: str | None = None

    @classmethod
    def of(
        cls, workspace: Workspace, host: str, serve: Callable[[CertificatePair], Awaitable[bool]]
    ) -> "RouterCertificate | None":
        """Return the certificate of a workspace's router; None if the workspace does not ask for TLS."""
        if not workspace.has_tls:
            return None
        return cls(
            workspace.tls_certificate,
            workspace.tls_key,
            own_folder=workspace.tls_folder,
            authority=workspace.endpoint_ca,
            host=host,
            serve=serve,
        )

    @property
    def ends(self) -> datetime | None:
        """When the certificate that is served ends; None before one is served."""
        return self._served.ends if self._served else None

    @property
    def authority(self) -> Path | None:
        """The file with the authority to check it against; None for this machine's authorities."""
        if self._own:
            return self._own.authority
        is_own_authority = self._served is not None and self._served.is_own_authority
        return self._given_authority or (self._certificate if is_own_authority else None)

    async def start(self) -> None:
        """Read the pair, or make the workspace's own, and give it to the router.

        Raises:
            WorkspaceError: The pair cannot be used.
        """
        try:
            await self._give_to_router()
        except WorkspaceError as error:
            raise WorkspaceError(self._problem_sentence(str(error))) from error

    async def renew_or_reload(self) -> None:
        """Renew the workspace's own certificate if it ends soon; give the router the pair if its files have changed."""
        try:
            await self._give_to_router()
        except WorkspaceError as error:
            if str(error) != self._problem:
                log.warning("%s", self._problem_sentence(str(error)))
            self._problem = str(error)
        else:
            self._problem = None

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is wrong: with the new pair, and with the one that is served."""
        found = []
        if self._problem and self._served:
            found.append(
                f"{self._problem_sentence(self._problem)}; the one of before, which ends on "
                f"{self._served.ends:%Y-%m-%d}, is still served"
            )
        if self._served and self._served.ends <= self._now():
            found.append(
                f"the router's certificate ended on {self._served.ends:%Y-%m-%d %H:%M} UTC, so callers refuse it: "
                f"{self._remedy()}"
            )
        return found

    def warnings(self) -> list[str]:
        """Return the problems, and a sentence if the certificate ends soon."""
        found = self.problems()
        left = self._served.ends - self._now() if self._served else WARN_BEFORE
        if self._served and timedelta(0) < left < (WARN_BEFORE_OWN if self._own else WARN_BEFORE):
            found.append(
                f"the router's certificate ends on {self._served.ends:%Y-%m-%d %H:%M} UTC, in {left.days} days: "
                f"{self._remedy()}"
            )
        return found

    async def _give_to_router(self) -> None:
        """Give the router the pair in the files, if it has another; raise WorkspaceError if it cannot be used."""
        if self._own:
            try:
                self._own.ensure(self._now())
            except OSError as error:
                raise WorkspaceError(f"it cannot be written ({error.strerror or error}): free disk space") from error
        content = (_read_file(self._certificate, "certificate"), _read_key(self._key))
        if content == self._served_content:
            return
        pair = read_pair(*content, self._now())
        try:
            is_served = await self._serve(pair)
        except OSError as error:
            raise WorkspaceError(
                f"it cannot be written for the router ({error.strerror or error}): free disk space"
            ) from error
        if not is_served:
            raise WorkspaceError("the router has not taken it over yet: look into router.log")
        self._served, self._served_content = pair, content
        log.info("the router serves the certificate of %s, which ends on %s", ", ".join(pair.names), pair.ends)

    def _problem_sentence(self, problem: str) -> str:
        """Return a sentence on a pair that cannot be used."""
        return f"the certificate {self._certificate} with the key {self._key} cannot be used: {problem}"

    def _remedy(self) -> str:
        """Return what to do about a certificate that ends."""
        if self._own:
            return (
                f"it should have been renewed: look into supervisor.log, and whether {self._key.parent} can be written"
            )
        return f"replace {self._certificate} and {self._key}; the router takes a new pair over by itself"


def _read_key(path: Path) -> bytes:
    """Return the content of a key's file; raise WorkspaceError if others than its owner have access to it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise WorkspaceError(f"its key cannot be read ({error.strerror or error})") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise WorkspaceError(
            f"others than its owner have access to the key (mode {stat.S_IMODE(mode):04o}): `chmod 600 {path}`; if "
            "anybody may have read it, make a new one"
        )
    return _read_file(path, "key")


def _read_file(path: Path, what: str) -> bytes:
    """Return the content of a file of bounded size; raise WorkspaceError if it cannot be read."""
    try:
        if os.stat(path).st_size > MAX_BYTES:
            raise WorkspaceError(f"the file of its {what} has more than {MAX_BYTES / 1e6:.0f} MB")
        return read_regular_file(path)
    except OSError as error:
        raise WorkspaceError(f"the file of its {what} cannot be read ({error.strerror or error})") from error
