"""Signing in to Azure Blob Storage: which account a credential is for."""

import pytest
from azure.core.exceptions import ClientAuthenticationError

from controlled_rollout.storage.blob_account import azure_errors, blob_of_connection_string

OTHER = "DefaultEndpointsProtocol=https;AccountName=other;AccountKey=a2V5;EndpointSuffix=core.windows.net"


def test_the_connection_string_of_another_account_is_not_used_and_a_failed_sign_in_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = "https://mine.blob.core.windows.net/container/team"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", OTHER)

    assert blob_of_connection_string(address, {"AZURE_STORAGE_CONNECTION_STRING": OTHER}) is None
    with pytest.raises(OSError, match=r"is for another account, https://other.blob.core.windows.net, and was not used"):
        with azure_errors(address):
            raise ClientAuthenticationError("no identity")


def test_a_failed_sign_in_with_the_accounts_own_connection_string_names_the_role_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", OTHER)

    with pytest.raises(OSError, match=r"needs the role Storage Blob Data Contributor on the container$"):
        with azure_errors("https://other.blob.core.windows.net/container"):
            raise ClientAuthenticationError("refused")
