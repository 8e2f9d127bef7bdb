"""The public keys of outside issuers: read again and again, kept on disk while an issuer does not answer.

The router gets them as it gets an endpoint's own: nobody's request waits for an issuer, and one that is away ends no
key at once. What is not known lets nobody in.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx  # noqa: TID253 - runs only inside the supervisor's process
from pydantic import BaseModel, ConfigDict, ValidationError

from controlled_rollout.addresses import transport_for
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.polling import cancel
from controlled_rollout.target.local import atomic_files
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.tokens import MAX_KEY_SET_BYTES, accepted_keys, no_keys

__all__ = ["IssuerKeys"]

log = logging.getLogger(__name__)

REFRESH_S: Final = 300.0
RETRY_S: Final = 5.0
TIMEOUT_S: Final = 5.0
# An issuer that has been away for longer may have withdrawn a key meanwhile.
KEPT_S: Final = 24 * 3600.0


class _Stored(BaseModel):
    """The keys of an issuer as they are on disk.

    Attributes:
        uri: Where they were read.
        read: When, in seconds since 1970.
        key_set: The public keys, as the JSON text of a JSON Web Key Set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    read: float
    key_set: str


@dataclass
class _Issuer:
    """What is known of one issuer.

    Attributes:
        stored: Its keys; None if they were never read.
        due: When they are read next, on the monotonic clock.
        problem: Why they could not be read at the last attempt; empty if they could.
    """

    stored: _Stored | None
    due: float = field(default_factory=time.monotonic)
    problem: str = ""


class IssuerKeys:
    """Reads the keys of all issuers that endpoints name.

    Args:
        folder: Where they are kept.
        on_change: Called when other keys are accepted than before.
        clock: Returns the seconds since 1970.
    """

    def __init__(self, folder: Path, on_change: Callable[[], None], clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._on_change = on_change
        self._clock = clock
        self._issuers: dict[str, _Issuer] = {}
        self._told: dict[str, str] = {}
        self._no_keys = ""
        self._wake_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the asyncio task that reads keys."""
        self._task = asyncio.create_task(self._keep_reading(), name="issuer keys")

    async def stop(self) -> None:
        """Stop reading."""
        await cancel(self._task)

    def key_set(self, uri: str) -> str:
        """Return the keys of an issuer that are accepted now; while none are known, a set that no token fits."""
        if uri not in self._issuers:
            self._issuers[uri] = _Issuer(self._read_file(uri))
            self._wake_up.set()
        stored = self._valid_keys(self._issuers[uri])
        if stored is not None:
            return stored.key_set
        self._no_keys = self._no_keys or no_keys()
        return self._no_keys

    def forget_others(self, uris: set[str]) -> None:
        """Stop reading the keys of issuers that no endpoint names any more, and remove their files."""
        for uri in set(self._issuers) - uris:
            del self._issuers[uri]
            self._file(uri).unlink(missing_ok=True)

    def warnings(self, uri: str) -> tuple[str, ...]:
        """Return a sentence on an issuer whose keys cannot be read now; none if they can."""
        issuer = self._issuers.get(uri)
        if issuer is None or not issuer.problem:
            return ()
        if (stored := self._valid_keys(issuer)) is None:
            return (f"the keys at {uri} cannot be read ({issuer.problem}): every token is refused until they can",)
        hours = (stored.read + KEPT_S - self._clock()) / 3600
        return (
            f"the keys at {uri} cannot be read ({issuer.problem}): those of before are accepted for {hours:.1f} h more",
        )

    def _valid_keys(self, issuer: _Issuer) -> _Stored | None:
        """Return the keys of an issuer unless they were read too long ago."""
        stored = issuer.stored
        return stored if stored is not None and self._clock() - stored.read < KEPT_S else None

    async def _keep_reading(self) -> None:
        """Read the keys of every issuer when it is due, until cancelled."""
        while True:
            self._wake_up.clear()
            now = time.monotonic()
            await asyncio.gather(
                *(self._read_issuer(uri) for uri, issuer in self._issuers.items() if issuer.due <= now)
            )
            accepted = {
                uri: stored.key_set for uri in self._issuers if (stored := self._valid_keys(self._issuers[uri]))
            }
            if accepted != self._told:
                self._told = accepted
                self._on_change()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._wake_up.wait()

    async def _read_issuer(self, uri: str) -> None:
        """Read the keys of one issuer, and note when they are read next."""
        try:
            stored = _Stored(uri=uri, read=self._clock(), key_set=accepted_keys(await _download(uri)))
        except ControlledRolloutError as error:
            if (issuer := self._issuers.get(uri)) is not None:
                if issuer.problem != str(error):
                    log.warning("the keys at %s cannot be read: %s", uri, error)
                issuer.problem, issuer.due = str(error), time.monotonic() + RETRY_S
            return
        if (issuer := self._issuers.get(uri)) is None:
            return  # nobody names it any more
        issuer.stored, issuer.problem, issuer.due = stored, "", time.monotonic() + REFRESH_S
        try:
            atomic_files.create_private_folder(self._folder)
            atomic_files.write_atomically(self._file(uri), stored.model_dump_json().encode())
        except OSError as error:
            log.warning("the keys at %s cannot be kept in %s: %s", uri, self._folder, error.strerror or error)

    def _read_file(self, uri: str) -> _Stored | None:
        """Return the keys of an issuer from disk; None if they are not there, or the file cannot be read."""
        try:
            stored = _Stored.model_validate_json(read_regular_file(self._file(uri)))
            # Nothing that Envoy would refuse may reach it: it would refuse all other endpoints' keys as well.
            key_set = accepted_keys(stored.key_set.encode())
        except (OSError, ValidationError, ControlledRolloutError):
            return None
        return stored.model_copy(update={"key_set": key_set}) if stored.uri == uri else None

    def _file(self, uri: str) -> Path:
        """Return the path of the file of an issuer's keys."""
        return self._folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.json"


async def _download(uri: str) -> bytes:
    """Return what an address answers, a little more than is accepted at most.

    Raises:
        ControlledRolloutError: It does not answer in time, or not with 200; redirections are not followed.
    """
    received = bytearray()
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx.AsyncClient(timeout=TIMEOUT_S, transport=transport_for(uri)) as client,
            client.stream("GET", uri) as response,
        ):
            if response.status_code != 200:
                raise ControlledRolloutError(f"it answers {response.status_code}")
            async for part in response.aiter_bytes():
                received += part
                if len(received) > MAX_KEY_SET_BYTES:
                    break
    except TimeoutError as error:
        raise ControlledRolloutError(f"it does not answer within {TIMEOUT_S:g} s") from error
    # A file of authorities that is not there, or a proxy's URL that is none, are errors of the last two kinds: they may
    # be mended while this process runs, so they must not end the task that reads keys.
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise ControlledRolloutError(f"it does not answer: {str(error) or type(error).__name__}") from error
    return bytes(received)
