"""A storage that pods reach: Azurite on the node's address, with a certificate of an authority of its own."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.azurite import Azurite
from tests.cluster.lab.layout import NODE_ADDRESS
from tests.cluster.sandbox import Sandbox
from tests.collector_image import collector_image

if TYPE_CHECKING:
    from tests.cluster.lab import Lab

__all__ = ["SECRET", "PodStorage", "serving_pods"]

CONTAINER = "collected"
SECRET = "storage"


@dataclass(frozen=True)
class PodStorage:
    """The storage of a workspace on the lab.

    Attributes:
        azurite: The service.
        authority: The certificate that its own is checked by.
        address: The setting `storage`.
    """

    azurite: Azurite
    authority: Path
    address: str

    def settings(self, lab: "Lab", namespace: str) -> dict[str, str]:
        """Give a namespace the Secret of the collectors, and return the workspace's settings that use it."""
        values = {"connection_string": self.azurite.connection_string, "ca.crt": self.authority.read_text()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": values}
        lab.kubectl("--namespace", namespace, "create", "-f", "-", input=json.dumps(secret))
        return {
            "storage": self.address,
            "collector_image": collector_image(lab.registry),
            "collector_secret": SECRET,
        }

    def used_by(self, sandbox: Sandbox) -> Sandbox:
        """Return a sandbox whose versions may collect."""
        settings = self.settings(sandbox.lab, sandbox.namespace)
        return replace(sandbox, workspace=sandbox.workspace.model_copy(update=settings))


@contextmanager
def serving_pods(lab: "Lab", folder: Path) -> Iterator[PodStorage]:
    """Serve blobs to pods in the block, and sign this process in to them."""
    if not lab.is_ours:
        pytest.skip("only the lab's pods reach a service of this machine")
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=storage"]
    names = ["-addext", f"subjectAltName=IP:{NODE_ADDRESS}"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    azurite = Azurite(folder / "blobs", NODE_ADDRESS, (certificate, key))
    azurite.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
            patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
            _create_container(azurite, certificate)
            yield PodStorage(azurite, certificate, f"{azurite.address}/{CONTAINER}/team")
    finally:
        azurite.stop()


def _create_container(azurite: Azurite, certificate: Path) -> None:
    from azure.storage.blob import BlobServiceClient

    verify: dict[str, Any] = {"use_env_settings": False, "connection_verify": str(certificate)}
    with BlobServiceClient.from_connection_string(azurite.connection_string, **verify) as client:
        client.create_container(CONTAINER)
