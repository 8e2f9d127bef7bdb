"""The configuration of a workspace as one value: its target, its metric store, its registries, its folders.

Without a configuration it is the local workspace: a first run needs none.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import WorkspaceError

__all__ = ["DNS_LABEL", "Workspace", "is_url", "user_cache"]

HOME_VARIABLE = "CONTROLLED_ROLLOUT_HOME"
DEFAULT_HOME = "~/.controlled-rollout"
CACHE_VARIABLE = "CONTROLLED_ROLLOUT_CACHE"

DNS_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
OBJECT_NAME: Final = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
# An image by its digest: what a tag names may change.
DIGEST: Final = r"^[^@\s]+@sha256:[0-9a-f]{64}$"
# The account is in the host's name, as in every cloud of Azure, or in the path, as at an emulator or an edge device.
# Plain http stays on this machine.
BLOB_ADDRESS: Final = re.compile(
    r"(https://[a-z0-9]{3,24}(\.z[0-9]{2})?\.blob(\.[a-z0-9-]+)+(:[0-9]+)?"
    r"|https://(?![^/]*\.blob\.)[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]+)?/[a-z0-9]{3,24}"
    r"|http://(127\.0\.0\.1|localhost):[0-9]+/[a-z0-9]{3,24})"
    r"/[a-z0-9](-?[a-z0-9]){2,62}(/[A-Za-z0-9._-]+)*/?"
)
# Of Spark Connect, with parameters, of which a token is none: it would be shown wherever a workspace is.
SPARK_REMOTE: Final = r"^sc://[A-Za-z0-9.-]+(:\d{1,5})?(/(;(use_ssl|user_id|user_agent|x-[a-z0-9-]+)=[^;=\s]*)*)?$"
ACR_ID: Final = (
    "(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.ContainerRegistry/registries/[a-z0-9]+$"
)
LOG_ANALYTICS_ID: Final = (
    "(?i)^/subscriptions/[0-9a-f-]{36}/resourceGroups/[-._()a-z0-9]{1,90}/providers/Microsoft.OperationalInsights/"
    "workspaces/[-a-z0-9]{4,63}$"
)
TLS_FILES: Final = ("tls_certificate", "tls_key", "endpoint_ca")
# What a setting with a pattern has to be, for a message.
EXPECTED: Final = {
    "acr_id": "the resource id of an Azure Container Registry, /subscriptions/…/registries/<name>",
    "builder_namespace": "the name of a namespace",
    "endpoint_url": "an address such as https://models.example, without a path",
    "envoy_namespace": "the name of a namespace",
    "gateway": "the name of a Gateway, as namespace/name or namespace/name/listener",
    "namespace": "the name of a namespace",
    "osv_url": "an address such as https://api.osv.dev/v1/query, without a password",
    "prometheus_url": "an address such as http://prometheus:9090, without a query",
    "telemetry_resource_id": "the resource id of a Log Analytics workspace, "
    "/subscriptions/…/resourceGroups/…/providers/Microsoft.OperationalInsights/workspaces/<name>",
    "spark_remote": "the address of a Spark Connect server, sc://host:port, without its token: that is read from the "
    "environment variable SPARK_CONNECT_AUTHENTICATE_TOKEN",
}


def user_cache() -> Path:
    """Return the user's folder of built images, which all workspaces share that do not set another.

    It is `$CONTROLLED_ROLLOUT_CACHE`, else `controlled-rollout/images` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
        WorkspaceError: It would be in the home folder of a user who has none.
    """
    if folder := os.environ.get(CACHE_VARIABLE):
        return _absolute_folder("cache_folder", folder)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _absolute_folder("cache_folder", caches) / "controlled-rollout" / "images"


def _absolute_folder(setting: str, folder: Any) -> Path:
    """Return the absolute path of a folder that may be relative or begin with `~`.

    Raises:
        WorkspaceError: It is no path, or begins with the home folder of a user who has none.
    """
    if not isinstance(folder, (str, os.PathLike)) or "\0" in os.fspath(folder):
        raise WorkspaceError(f"the workspace's setting {setting} = {folder!r} is no path: give a text")
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise WorkspaceError(
            f"the workspace's folder {setting} = {os.fspath(folder)!r} is in a home folder that is not known here, "
            f"because HOME is not set or there is no such user: set HOME, or name the folder itself ({setting}, or "
            f"${HOME_VARIABLE if setting == 'root' else CACHE_VARIABLE})"
        ) from error


def is_url(place: str) -> bool:
    """Return whether a place is written as a URL, and not as a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", place) is not None


class Workspace(BaseModel):
    """A workspace: where endpoints run, where their telemetry is read, where images are pushed.

    Attributes:
        name: Its name in messages.
        target: Where versions run: `local` in processes of this machine, `kubernetes` in a cluster with the Gateway API
            and Envoy Gateway.
        root: This machine's folder of the workspace; for the local workspace revisions, keys, logs and telemetry.
        cache_folder: This machine's folder of built environments, local images and fetched models, addressed by their
            content. By default all workspaces of a user share one, see `user_cache`.
        storage: The place for models that tasks hand over, collected data, reports and records: a folder that all
            workers and the triggerer share, or an address in Azure Blob Storage,
            `https://<account>.blob.core.windows.net/<container>/<prefix>`, or of another service that speaks its
            protocol, `https://<host>/<account>/<container>/<prefix>`. None for the folder `storage` in `root`.
        data_engine: What summarises collected data for the gate: `duckdb` in the process of the task, or `spark`.
        spark_remote: For `spark`: the address of a Spark Connect server, `sc://host:port`, without its token, which is
            read from `SPARK_CONNECT_AUTHENTICATE_TOKEN`. None for the session that Spark's own configuration describes.
        records: Where the records of decisions are instead of in `storage`: an address as there. None for `records` in
            `storage`, or in `root` if `storage` is not set.
        telemetry_endpoint: Base URL of the Log Analytics query API; None for Azure's, or for the local supervisor's.
        telemetry_workspace_id: The Log Analytics workspace that is queried; None for the local supervisor's.
        telemetry_resource_id: That workspace's resource id,
            `/subscriptions/…/resourceGroups/…/providers/Microsoft.OperationalInsights/workspaces/…`: tasks then link to
            their endpoint's requests in the Azure portal. None for no such link.
        telemetry_token_file: The file with the token of a telemetry store on this machine.
        prometheus_url: Base URL of a Prometheus that scrapes the routers: evidence is then read there instead.
        prometheus_selector: Label matchers of the routers' series in it, such as `job="envoy"`.
        kubernetes_conn_id: The Airflow connection (type `kubernetes`) to the cluster; used by the tasks.
        kubeconfig: Without Airflow: the kubeconfig file of the cluster; None for $KUBECONFIG, ~/.kube/config, or the
            service account of the pod that this runs in.
        kube_context: A context of that file; None for its current one.
        namespace: The namespace of the endpoints' objects.
        gateway: The Gateway that the endpoints' routes attach to, as `namespace/name` or `namespace/name/listener`.
        envoy_namespace: The namespace of the Gateway's Envoy pods.
        endpoint_url: Base URL at which callers reach the Gateway; None for the Gateway's own address.
        image_pull_secret: The Secret, in `namespace`, for pulling images from a registry that requires one.
        collector_image: The image of the collector, made of `docker/collector`; it runs beside each replica of versions
            that collect.
        collector_secret: The Secret, in `namespace`, with the collector's credential for `storage`: the key
            `connection_string` or `sas_token`; and `ca.crt`, if the storage's certificate is of an authority of your
            own. Only the collector gets it.
        collector_service_account: The ServiceAccount, in `namespace`, with whose workload identity the collector writes
            to `storage`, instead of a secret.
        registry: Where images are pushed: a registry and a prefix, such as `registry.example/models`.
        shared_registry: A registry with environments that this workspace's registry may not have.
        base_image: The base image of environments that name none.
        registry_conn_id: The Airflow connection with the user who pushes to `registry`; used by the tasks. None for a
            registry without users, or for an Azure Container Registry that accepts the worker's own identity.
        shared_registry_conn_id: The same for `shared_registry`.
        base_image_conn_id: The same for the registry of base images.
        builder: What builds environment images: `buildah` on this machine, `kubernetes` a pod of the cluster,
            `acr_tasks` the Azure Container Registry itself.
        builder_image: For `kubernetes`: an image that contains buildah.
        builder_namespace: For `kubernetes`: the namespace of the pods that build; not the endpoints', because such
            pods need more than those are allowed.
        builder_pod_template: For `kubernetes`: a file with a Pod that they are made from.
        acr_id: For `acr_tasks`: the registry's resource id,
            `/subscriptions/…/resourceGroups/…/providers/Microsoft.ContainerRegistry/registries/…`.
        scanner: The program that scans images before they are rolled out: `trivy` or `grype`.
        osv_url: The query URL of an OSV service for pip-audit; None for PyPI's own vulnerability data.
        tls: Whether callers have to use https. Locally the router then has TLS, with a certificate that the workspace
            makes unless `tls_certificate` names one; on Kubernetes the Gateway has to have a listener with https.
        tls_certificate: For the local workspace: the file of the router's certificate, followed by those of the
            authorities between it and the root, as PEM.
        tls_key: For the local workspace: the file of its private key, which only its owner may read.
        endpoint_ca: A file with the authority that the endpoints' certificate is checked against by the tasks and the
            command line, as PEM; None for this machine's authorities, and for the local workspace's own certificate.
        open_cluster: Opens the cluster's API client; set by the tasks' hook, never by a configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "local"
    target: Literal["local", "kubernetes"] = "local"
    root: Annotated[Path, Field(validate_default=True)] = Path(DEFAULT_HOME)
    cache_folder: Path = Field(default_factory=user_cache)
    storage: str | None = None
    data_engine: Literal["duckdb", "spark"] = "duckdb"
    spark_remote: Annotated[str, Field(pattern=SPARK_REMOTE)] | None = None
    records: str | None = None
    telemetry_endpoint: str | None = None
    telemetry_workspace_id: str | None = None
    telemetry_resource_id: Annotated[str, Field(pattern=LOG_ANALYTICS_ID)] | None = None
    telemetry_token_file: Path | None = None
    prometheus_url: Annotated[str, Field(pattern=r"^https?://[^?#\s]+$")] | None = None
    prometheus_selector: str = ""

    kubernetes_conn_id: str | None = None
    kubeconfig: Path | None = None
    kube_context: str | None = None
    namespace: Annotated[str, Field(pattern=f"^{DNS_LABEL}$")] = "default"
    gateway: Annotated[str, Field(pattern=f"^({DNS_LABEL}/{OBJECT_NAME}(/{OBJECT_NAME})?)?$")] = ""
    envoy_namespace: Annotated[str, Field(pattern=f"^{DNS_LABEL}$")] = "envoy-gateway-system"
    endpoint_url: Annotated[str, Field(pattern=r"^https?://[^/?#\s]+$")] | None = None
    image_pull_secret: str | None = None
    collector_image: Annotated[str, Field(pattern=DIGEST)] | None = None
    collector_secret: Annotated[str, Field(pattern=f"^{OBJECT_NAME}$")] | None = None
    collector_service_account: Annotated[str, Field(pattern=f"^{OBJECT_NAME}$")] | None = None

    registry: str | None = None
    shared_registry: str | None = None
    base_image: str | None = None
    registry_conn_id: str | None = None
    shared_registry_conn_id: str | None = None
    base_image_conn_id: str | None = None
    builder: Literal["buildah", "kubernetes", "acr_tasks"] = "buildah"
    builder_image: str | None = None
    builder_namespace: Annotated[str, Field(pattern=f"^{DNS_LABEL}$")] | None = None
    builder_pod_template: Path | None = None
    acr_id: Annotated[str, Field(pattern=ACR_ID)] | None = None
    scanner: Literal["trivy", "grype"] = "trivy"
    osv_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] | None = None

    tls: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    endpoint_ca: Path | None = None

    open_cluster: Annotated[Callable[[], AbstractAsyncContextManager[Any]] | None, Field(exclude=True, repr=False)] = (
        None
    )

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, place: str | None) -> str | None:
        """Raise ValueError if the storage is neither an absolute folder nor an address in Azure Blob Storage."""
        if place is None or BLOB_ADDRESS.fullmatch(place) or (not is_url(place) and Path(place).is_absolute()):
            return place
        raise ValueError(
            "give a folder, or https://<account>.blob.core.windows.net/<container>/<prefix> without a signature: "
            "credentials are the identity's, or in AZURE_STORAGE_CONNECTION_STRING"
        )

    @field_validator("records")
    @classmethod
    def _check_records(cls, place: str | None) -> str | None:
        """Raise ValueError if the place of records is no address in Azure Blob Storage."""
        if place is None or BLOB_ADDRESS.fullmatch(place):
            return place
        raise ValueError(
            "give an address in Azure Blob Storage, https://<account>.blob.core.windows.net/<container>/<prefix>"
        )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Raise ValueError with all the settings that contradict each other."""
        if faults := list(self._contradictions()):
            raise ValueError("; ".join(faults))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield which settings do not fit together, or not the target."""
        if self.spark_remote is not None and self.data_engine != "spark":
            yield "spark_remote is only for data_engine 'spark': set that too, or leave it out"
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "tls_certificate and tls_key belong together: set both, or neither"
        if self.target != "kubernetes":
            return
        if not self.gateway:
            yield "target 'kubernetes' needs the setting gateway, as namespace/name of a Gateway"
        if self.tls_certificate is not None:
            yield (
                "tls_certificate and tls_key are for the local workspace: on Kubernetes the Gateway's listener names "
                "the Secret with the certificate (tls.certificateRefs); set tls to ask for such a listener"
            )
        if self.tls and (self.endpoint_url or "").startswith("http:"):
            yield "tls is set, and endpoint_url is plain http: give the https address, or leave it out"
        if self.builder_namespace == self.namespace:
            # Pods that build would run among those that serve.
            yield (
                f"builder_namespace and namespace are both {self.namespace!r}: pods that build need Pod Security level "
                "'privileged', so give them a namespace apart from the endpoints'"
            )

    @classmethod
    def local(cls, root: str | os.PathLike[str] | None = None) -> Self:
        """Return the local workspace in `root`, else in `$CONTROLLED_ROLLOUT_HOME`, else in `~/.controlled-rollout`."""
        return cls.from_settings({} if root is None else {"root": os.fspath(root)})

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Return the workspace for settings by name, such as a connection's extras; raise if one is wrong.

        Raises:
            WorkspaceError: A setting is unknown or not valid.
        """
        folder = settings.get("root") or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME
        try:
            cache = settings.get("cache_folder") or user_cache()
            folders: dict[str, Any] = {
                "root": _absolute_folder("root", folder),
                "cache_folder": _absolute_folder("cache_folder", cache),
            }
            for name in TLS_FILES:
                if settings.get(name):
                    folders[name] = _absolute_folder(name, settings[name])
            storage = settings.get("storage")
            if isinstance(storage, str | os.PathLike) and not is_url(os.fspath(storage)):
                folders["storage"] = str(_absolute_folder("storage", storage))
            return cls.model_validate(settings | folders)
        except ValidationError as error:
            raise WorkspaceError(_faults_text(error)) from None

    @property
    def has_tls(self) -> bool:
        """Whether callers have to use https."""
        return self.tls or self.tls_certificate is not None

    @property
    def gateway_name(self) -> tuple[str, str]:
        """The Gateway's namespace and name."""
        namespace, name, *_ = self.gateway.split("/")
        return namespace, name

    @property
    def gateway_listener(self) -> str | None:
        """The name of the Gateway's listener that serves the endpoints; None for all listeners."""
        _, _, *listener = self.gateway.split("/")
        return listener[0] if listener else None

    @property
    def storage_place(self) -> str:
        """The folder or the address of the storage."""
        return self.storage or str(self.root / "storage")

    @property
    def has_collector(self) -> bool:
        """Whether versions can collect: always locally; in a cluster with an image, and a storage that pods reach."""
        if self.target == "local":
            return True
        storage = self.storage or ""
        return bool(self.collector_image) and is_url(storage) and not is_loopback(urlsplit(storage).netloc)

    def local_command(self, action: str) -> str:
        """Return the command that starts or ends this local workspace, for a message: `controlled-rollout local …`.

        It names the folder: whoever reads the message may have another home folder, and another workspace in it.
        """
        return f"controlled-rollout local {action} --root {shlex.quote(str(self.root))}"

    # The layout of the local workspace.

    @property
    def endpoints_folder(self) -> Path:
        """The folder with one folder per endpoint, which holds revisions and keys."""
        return self.root / "endpoints"

    @property
    def secrets_folder(self) -> Path:
        """The folder with one file per secret, which holds its values by key."""
        return self.root / "secrets"

    @property
    def records_folder(self) -> Path:
        """The folder with the record of decisions of each endpoint, unless records are in Azure Blob Storage."""
        place = Path(self.storage) if self.storage and not is_url(self.storage) else self.root
        return place / "records" / self._cluster_folder

    @property
    def records_address(self) -> str | None:
        """The address of the records in Azure Blob Storage; None if they are in `records_folder`."""
        if self.records or self.storage is None or not is_url(self.storage):
            return self.records
        return "/".join(filter(None, (self.storage.rstrip("/"), "records", self._cluster_folder)))

    @property
    def _cluster_folder(self) -> str:
        """The folder of a cluster's endpoints among the records: its namespace; empty for the local workspace.

        Workspaces that share a place may have endpoints of the same name, and `clean` knows only of the local ones
        whether they are deleted.
        """
        return self.namespace if self.target == "kubernetes" else ""

    @property
    def logs_folder(self) -> Path:
        """The folder with a log file per process of the local workspace."""
        return self.root / "logs"

    @property
    def spools_folder(self) -> Path:
        """The folder with what replicas have collected and what is not in the storage yet."""
        return self.root / "spools"

    @property
    def telemetry_folder(self) -> Path:
        """The folder with the data of the local telemetry store."""
        return self.root / "telemetry"

    @property
    def tls_folder(self) -> Path:
        """The folder with the certificate that the local workspace makes for itself."""
        return self.root / "tls"

    @property
    def state_file(self) -> Path:
        """The supervisor's process id, socket and addresses for its clients; the file is absent while it is down."""
        return self.root / "supervisor.json"


def _faults_text(error: ValidationError) -> str:
    """Return a sentence with each setting that is not valid, and what it may be."""
    faults = error.errors(include_url=False)
    texts = []
    for fault in faults:
        name = ".".join(map(str, fault["loc"]))
        expected = EXPECTED.get(name) if fault["type"] == "string_pattern_mismatch" else None
        # Not the value: an address may hold a password or a signature.
        problem = f"give {expected}" if expected else fault["msg"].removeprefix("Value error, ")
        texts.append(": ".join(filter(None, (name, problem))))
    known = [name for name in Workspace.model_fields if name != "open_cluster"]
    advice = f": known are {', '.join(known)}" if any(fault["type"] == "extra_forbidden" for fault in faults) else ""
    return f"the workspace's settings are not valid ({'; '.join(texts)}){advice}"
