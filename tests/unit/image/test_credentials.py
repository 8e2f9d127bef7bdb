"""Passwords, tokens and signatures in texts: found, and hidden in messages and logs."""

import pytest

from controlled_rollout.image.credentials import find_credential, hide_credentials


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("GET https://me:s3cret@index.example/a failed", "GET https://***@index.example/a failed"),
        ("https://me@company.example:s3cret@index.example", "https://***@index.example"),
        ("https://s3cret@a.example and https://me:s3cret@b.example", "https://***@a.example and https://***@b.example"),
        ("https://a.example/b?sv=2024&sig=s3cret&se=1", "https://a.example/b?sv=2024&sig=***&se=1"),
        ("https://a.example/b?X-Amz-Signature=s3cret", "https://a.example/b?X-Amz-Signature=***"),
    ],
)
def test_a_credential_is_found_and_hidden(text: str, hidden: str) -> None:
    assert find_credential(text)
    assert hide_credentials(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "https://index.example/simple?a=b@c",
        "https://${USER}:${TOKEN}@index.example",
        "https://build:$TOKEN@index.example",
        "git+ssh://git@host.example/a.git@v1",
        "me@company.example",
        "https://a.example/b?token=${TOKEN}",
        "",
    ],
)
def test_what_is_no_credential_is_not_taken_for_one(text: str) -> None:
    assert find_credential(text) is None
