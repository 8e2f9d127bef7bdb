"""The key of a caller of a sticky endpoint is personal data: kept is a hash of it, with a secret of the store's."""

import hashlib
import hmac
import os
import secrets
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

__all__ = ["KEY_ATTRIBUTE", "UserHash"]

# The attribute of a router's span that has the key, and the property of a row that has its hash.
KEY_ATTRIBUTE: Final = "sticky_key"
USER_PROPERTY: Final = "user"
# Half of SHA-256: of a billion callers no two have the same.
DIGITS: Final = 32
SECRET_BYTES: Final = 32


class UserHash:
    """Replaces callers' keys by hashes of them; the same key has another hash at another endpoint.

    Args:
        secret: Without it nobody can find out whose hash one is by trying keys.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def replace_key(self, attributes: MutableMapping[str, Any]) -> None:
        """Replace the key in a span's attributes by its hash; a span without a key never has a hash."""
        key = attributes.pop(KEY_ATTRIBUTE, None)
        attributes.pop(USER_PROPERTY, None)
        if isinstance(key, str) and key:
            text = f"{attributes.get('endpoint', '')}\n{key}".encode("utf-8", "surrogatepass")
            attributes[USER_PROPERTY] = hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:DIGITS]

    @classmethod
    def of(cls, data: Path) -> "UserHash":
        """Read the secret from the store's data folder; make one if there is none, or it is damaged.

        Raises:
            OSError: The folder can be neither read nor written.
        """
        file = data / "user-hash.key"
        secret = file.read_bytes() if file.is_file() else b""
        if len(secret) != SECRET_BYTES:
            # Hashes of before are then of other users than the same callers have from now on.
            secret = secrets.token_bytes(SECRET_BYTES)
            temporary = file.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as new:
                new.write(secret)
                new.flush()
                os.fsync(new.fileno())
            temporary.replace(file)
        return cls(secret)
