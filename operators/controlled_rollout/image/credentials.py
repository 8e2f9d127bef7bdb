"""Passwords, tokens and signatures in a text that is stored in the clear: found, and taken out of messages."""

import re
from typing import Final

__all__ = ["VARIABLE", "find_credential", "hide_credentials"]

USER: Final = re.compile(r"://(?P<user>[^\s/?#]*)@")
SIGNATURE: Final = re.compile(
    r"[?&](?P<name>sig|signature|token|access_token|private_token|api_?key|password|x-amz-signature|x-goog-signature)="
    r"(?P<value>[^&\s#'\"]+)",
    re.IGNORECASE,
)
VARIABLE: Final = re.compile(r"\$(?:\w+|\{\w+\})")


def find_credential(text: str) -> str | None:
    """Return what an address in a text holds, such as `a password or token`; None if it holds nothing secret.

    A password that is a variable, as in `https://build:${TOKEN}@index.example`, is none, and neither is ssh's user.
    """
    for found in USER.finditer(text):
        user, colon, password = found["user"].partition(":")
        if colon or not text[: found.start()].endswith("ssh"):
            secret = password if colon else user
            if secret and not VARIABLE.fullmatch(secret):
                return "a password or token" if colon else "a user or a token"
    for found in SIGNATURE.finditer(text):
        if not VARIABLE.fullmatch(found["value"]):
            return f"a secret ({found['name']}=…)"
    return None


def hide_credentials(text: str) -> str:
    """Return a text in which user and password of each address, and secrets in its query, are replaced by `***`."""
    return SIGNATURE.sub(lambda found: f"{found[0][0]}{found['name']}=***", USER.sub("://***@", text))
