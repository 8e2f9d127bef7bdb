"""The first task of a rollout: reads all its arguments, logs plan and forecast, and checks what the rollout needs."""

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.arguments import (
    authentication,
    choice,
    duration,
    evidence_window,
    flag,
    gate_of,
    mapping_of,
    optional_duration,
    optional_text,
    read_all,
    sticky_key,
    text,
    whole_number,
)
from controlled_rollout.checks.forecast import forecast_of_plan
from controlled_rollout.checks.plan import RolloutPlan, contradictions, looks_too_rarely, room_for
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, EndpointError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.evidence.collected.terms import cannot_be_judged
from controlled_rollout.gate import Gate, wrong_unit
from controlled_rollout.hooks.connection_secrets import with_connections
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.links.task_links import LINKS
from controlled_rollout.model_registry import check_alias, check_model
from controlled_rollout.operators.connectivity import CheckConnectivityOperator
from controlled_rollout.operators.image_scan import scan_settings
from controlled_rollout.rollout import OnSilence
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.version import check_settings
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials

__all__ = ["CheckRolloutOperator"]

READERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "bake": duration,
    "min_requests": whole_number,
    "pass_every_step": flag,
    "decision_timeout": duration,
    "on_deadline": lambda name, value: choice(name, value, "hold", "roll_back", "ask"),
    "unseen_timeout": optional_duration,
    "interval": duration,
    "keep_warm": duration,
    "on_silence": lambda name, value: choice(name, value, *OnSilence),
    "silence": duration,
    "sticky": sticky_key,
    "auth": authentication,
    "on_conflict": lambda name, value: choice(name, value, "fail", "wait"),
    "conflict_timeout": duration,
    "ready_timeout": duration,
    "roll_back_timeout": duration,
}


class CheckRolloutOperator(CheckConnectivityOperator):
    """Checks a rollout before anything is changed: its arguments, what its steps can show, and what it needs.

    Every argument that a later task will read is read here, so that a mistake is found now and not after the promotion.
    The forecast depends on control's present traffic, which is read from the metric store; where there is none, the log
    says so and the task goes on.

    Args:
        endpoint: The endpoint's name.
        version: The version that will be rolled out.
        steps: The treatment's per cent at each step.
        arguments: The other arguments of the rollout by the names of `ControlledRollout`'s; they may be templates.
        approval: Whether a person approves the promotion.
        asks: Whether each gate has a task after it that asks a person at the deadline.
        keep_treatment: Whether a treatment that was rolled back stays.
        **kwargs: What `CheckConnectivityOperator` takes.
    """

    template_fields = (*CheckConnectivityOperator.template_fields, "arguments")
    operator_extra_links = LINKS
    # Nodes may still be added: whether the version itself can run is for its own step to see.
    needs_pod = False
    endpoint: str
    version: str

    def __init__(
        self,
        *,
        endpoint: str,
        version: str,
        steps: tuple[float, ...],
        arguments: Mapping[str, Any],
        approval: bool = False,
        asks: bool = False,
        keep_treatment: bool = False,
        **kwargs: Any,
    ) -> None:
        """Store the arguments of all later tasks; `check` reads them."""
        super().__init__(endpoint=endpoint, version=version, **kwargs)
        self.steps = steps
        self.arguments = arguments
        self.approval = approval
        self.asks = asks
        self.keep_treatment = keep_treatment

    def execute(self, context: "Context") -> None:
        """Read the connections that the version's settings name, then run all checks."""

        def begin(workspace: Workspace, users: "dict[str, Credentials]") -> Coroutine[Any, Any, None]:
            """Read the connections before the event loop runs, because that blocks; their values are not kept."""
            settings = self.arguments["settings"]
            # Settings that are no mapping are named with all other faults.
            with contextlib.suppress(ArgumentError):
                settings = mapping_of("settings", settings)
            if isinstance(settings, Mapping):
                settings, _ = with_connections(settings, WorkspaceHook.get_connection)
            self.arguments = {**self.arguments, "settings": settings}
            return self.check(workspace, users)

        self.run_with_registry_users(context, begin)

    async def check(self, workspace: Workspace, users: "Mapping[str, Credentials]") -> None:
        """Read the arguments, log plan and forecast, then run the connectivity checks.

        Raises:
            ArgumentError: An argument cannot be used; the message names all of them.
            TargetUnavailableError: Something that the rollout needs does not work.
        """
        plan, gate, window = self.read_arguments(workspace)
        self.log_progress(str(plan))
        if warning := await self._check_endpoint(workspace, gate):
            self.log.warning("%s", warning)
        self.log_progress(await forecast_of_plan(workspace, plan, gate=gate, window=window))
        await super().check(workspace, users)

    def read_arguments(self, workspace: Workspace | None = None) -> tuple[RolloutPlan, Gate, EvidenceWindow]:
        """Check all arguments of the rollout, and return its plan, its gate and its evidence window.

        Args:
            workspace: Where the version will run, which may not have all that it asks for; None: that is not checked.

        Raises:
            ArgumentError: Some cannot be used; the message names all of them.
        """
        from controlled_rollout.image.reference import ImageReference

        given = self.arguments

        def read_image() -> str:
            """Read the image, unless another task makes it."""
            return str(ImageReference.parse(text("image", given["image"]))) if "image" in given else ""

        values = read_all(
            {
                **{name: partial(read, name, given[name]) for name, read in READERS.items()},
                "gate": lambda: gate_of(given["gate"]),
                "window": lambda: evidence_window(given["bin_width"], given["allowed_lag"], given["baseline_length"]),
                "version": lambda: self._create_version(workspace),
                "image": read_image,
                "scan": lambda: given["scan"] and scan_settings(given["scan"]),
                "mlflow_alias": lambda: check_alias_settings(given),
            }
        )
        if problems := self._contradictions(values):
            raise ArgumentError("\n".join(problems))
        plan = RolloutPlan(
            endpoint=self.endpoint,
            version=self.version,
            steps=self.steps,
            bake=values["bake"],
            min_requests=values["min_requests"],
            pass_every_step=values["pass_every_step"],
            decision_timeout=values["decision_timeout"],
            on_deadline=values["on_deadline"],
            approval=self.approval,
            on_silence=OnSilence(values["on_silence"]),
            silence=values["silence"],
            keep_warm=values["keep_warm"],
            keep_treatment=self.keep_treatment,
        )
        return plan, values["gate"], values["window"]

    def _create_version(self, workspace: Workspace | None) -> Endpoint:
        """Create the version on an empty endpoint, only to check names and settings, and that a target has them."""
        from controlled_rollout.target.kubernetes.sticky_split import check_sticky
        from controlled_rollout.target.refusals import check_collection, check_supported

        given = self.arguments
        settings = mapping_of("settings", given["settings"])
        check_settings(settings)
        key: str | None = None
        auth: Auth | TokenIssuer | None = None
        # What cannot be read at all is said once, by the argument's own reader.
        with contextlib.suppress(ArgumentError):
            key = sticky_key("sticky", given["sticky"])
        with contextlib.suppress(ArgumentError):
            auth = authentication("auth", given["auth"])
        endpoint = Endpoint.new(text("endpoint", self.endpoint), auth or Auth.KEY, sticky=key)
        created = endpoint.create_version(text("version", self.version), **settings)
        check_supported(created, "cluster's" if workspace and workspace.target == "kubernetes" else "local")
        if workspace is not None:
            check_collection(created, None, workspace)
            if workspace.target == "kubernetes":
                check_sticky(created)
        return created

    def _contradictions(self, values: Mapping[str, Any]) -> list[str]:
        """Return what cannot be about the arguments that were read, a sentence each."""
        problems = contradictions(
            bake=values["bake"],
            decision_timeout=values["decision_timeout"],
            interval=values["interval"],
            window=values["window"],
        )
        if values["on_silence"] == OnSilence.ROLL_BACK:
            problems += filter(None, [looks_too_rarely(values["silence"], values["interval"])])
        problems += filter(
            None, [cannot_be_judged(values["gate"], self.version, values["version"].version(self.version).collected)]
        )
        if values["sticky"] is not None:
            problems += filter(None, [wrong_unit(values["gate"], self.endpoint, values["sticky"])])
        if values["on_deadline"] == "ask" and not self.asks:
            problems.append(
                "on_deadline = 'ask' came from a template or a mapped argument, and the tasks that ask are made when "
                "the DAG is parsed: give ControlledRollout the text 'ask' itself"
            )
        return problems

    async def _check_endpoint(self, workspace: Workspace, gate: Gate) -> str:
        """Return a warning if the endpoint will have as many versions as it may; empty if not, or if it is not known.

        Raises:
            ArgumentError: It has as many already, its control does not collect what the gate judges, the gate counts
                another unit than the endpoint's split asks for, or other callers are asked for.
        """
        from controlled_rollout.target.connect import connect

        try:
            async with connect(workspace) as target:
                endpoint = await target.endpoint(self.endpoint)
        except ControlledRolloutError:
            return ""  # there is none yet, or the connectivity check says what does not work
        full, warning = room_for(endpoint, self.version)
        control = endpoint.control
        unjudged = ""
        if control is not None and control.name != self.version:
            unjudged = cannot_be_judged(gate, control.name, control.collected)
        unit = wrong_unit(gate, endpoint.name, endpoint.sticky)
        callers = self._other_callers(endpoint)
        if full or unjudged or unit or callers:
            raise ArgumentError("\n".join(filter(None, (full, unjudged, unit, callers))))
        return warning

    def _other_callers(self, endpoint: Endpoint) -> str:
        """Return a sentence if other callers are asked for than the endpoint was created for; empty if not."""
        auth = authentication("auth", self.arguments["auth"])
        try:
            endpoint.check_callers(auth, sticky_key("sticky", self.arguments["sticky"]))
        except EndpointError as error:
            return str(error)
        return ""


def check_alias_settings(given: Mapping[str, Any]) -> None:
    """Raise ArgumentError if the alias in MLflow's registry, or the model that gets it, cannot be used.

    Args:
        given: The rollout's arguments; the model is not among them if another task makes it.
    """
    alias, model = optional_text(given.get("mlflow_alias")), optional_text(given.get("mlflow_model"))
    if alias is not None:
        check_alias("mlflow_alias", alias)
    if model is not None:
        check_model("mlflow_model", model)
