"""An endpoint of the retired SDK as one of ours: everything is taken, or said to be left out, or refused."""

import copy
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlled_rollout.cli import command_parser, main
from controlled_rollout.cli.aksendpoint_json import parse_json, read_aks_endpoint
from controlled_rollout.cli.deploy import deployment
from controlled_rollout.cli.endpoint_file import read_endpoint_file
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ArgumentError
from controlled_rollout.steps import edits

IMAGE = f"registry.example/digits@sha256:{'1' * 64}"
# Every field that azureml-core 1.61 writes, each with a value.
VERSION: dict[str, Any] = {
    "name": "old", "description": "first", "tags": {"team": "vision"}, "properties": {"origin": "lab"},
    "state": "Healthy", "createdTime": "2024-01-01T00:00:00+00:00", "updatedTime": "2024-01-02T00:00:00+00:00",
    "error": {"code": "none"}, "computeType": "AKS", "workspaceName": "ws", "imageId": "digits:3",
    "imageDigest": "sha256:1", "imageDetails": {"id": "digits:3"}, "scoringUri": "http://x/score",
    "createdBy": {"userName": "Ada"}, "appInsightsEnabled": True, "authEnabled": True, "aadAuthEnabled": False,
    "autoScaler": {
        "autoscaleEnabled": True, "minReplicas": 2, "maxReplicas": 6, "refreshPeriodInSeconds": 3,
        "targetUtilization": 60,
    },
    "computeName": "aks", "numReplicas": 3, "deploymentStatus": "Succeeded", "scoringTimeoutMs": 30000,
    "containerResourceRequirements": {"cpu": 0.5, "cpuLimit": 1, "memoryInGB": 1.5, "memoryInGBLimit": 3, "gpu": 1},
    "dataCollection": {"eventHubEnabled": True, "storageEnabled": True},
    "maxConcurrentRequestsPerContainer": 2, "maxQueueWaitMs": 400,
    "livenessProbeRequirements": {
        "periodSeconds": 11, "initialDelaySeconds": 300, "timeoutSeconds": 4, "successThreshold": 1,
        "failureThreshold": 5,
    },
    "environmentDetails": {"name": "e"}, "modelDetails": [{"name": "m"}], "isDefault": True, "trafficPercentile": 80,
    "versionType": "Control",
}  # fmt: skip
ENDPOINT: dict[str, Any] = {
    "name": "digits", "description": "numbers", "tags": {"a": "b"}, "properties": {"c": "d"}, "state": "Healthy",
    "createdTime": "2024-01-01T00:00:00+00:00", "updatedTime": None, "error": None, "computeName": "aks",
    "computeType": "AKS", "workspaceName": "ws", "deploymentStatus": None, "scoringUri": "http://x/score",
    "authEnabled": True, "aadAuthEnabled": False, "appInsightsEnabled": True,
    "versions": {
        "old": VERSION,
        "new": {"numReplicas": 2, "isDefault": False, "trafficPercentile": 20, "versionType": "Treatment"},
    },
}  # fmt: skip


def changed(*path: str, to: Any) -> dict[str, Any]:
    """Return the endpoint with another value at a path."""
    document = copy.deepcopy(ENDPOINT)
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return document


def test_an_endpoint_becomes_one_of_ours_with_all_its_settings() -> None:
    imported = read_aks_endpoint(parse_json(json.dumps(ENDPOINT)))

    assert imported.document() == {
        "name": "digits", "description": "numbers", "tags": {"a": "b"}, "properties": {"c": "d"},
        "versions": {
            "old": {
                "image": "", "description": "first", "tags": {"team": "vision"}, "properties": {"origin": "lab"},
                "traffic_percentile": 80.0, "is_default": True, "is_control": True, "cpu_cores": 0.5,
                "cpu_cores_limit": 1.0, "memory_gb": 1.5, "memory_gb_limit": 3.0, "gpu_cores": 1,
                "autoscale_min_replicas": 2, "autoscale_max_replicas": 6, "autoscale_refresh_seconds": 3,
                "autoscale_target_utilization": 60, "scoring_timeout_ms": 30000, "replica_max_concurrent_requests": 2,
                "max_request_wait_time": 400, "period_seconds": 11, "initial_delay_seconds": 300, "timeout_seconds": 4,
                "failure_threshold": 5, "collect_model_data": True,
            },
            "new": {"image": "", "traffic_percentile": 20.0, "num_replicas": 2},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    "field",
    [
        "state", "createdTime", "updatedTime", "error", "computeType", "computeName", "workspaceName", "imageId",
        "imageDigest", "imageDetails", "scoringUri", "createdBy", "deploymentStatus", "environmentDetails",
        "modelDetails", "dataCollection.eventHubEnabled",
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_said_field_by_field(field: str) -> None:
    left_out = read_aks_endpoint(ENDPOINT).left_out

    assert [line for line in left_out if line.startswith(f"versions.old.{field} = ")]
    assert [line for line in left_out if "num_replicas = 3: the autoscaler chooses the number" in line]


def test_a_field_that_nobody_knows_is_said_and_keys_are_never_repeated() -> None:
    document = changed("versions", "old", "mood", to="good") | {"keys": {"primaryKey": "hunter2"}}

    left_out = "\n".join(read_aks_endpoint(document).left_out)

    assert "versions.old.mood = 'good'" in left_out
    assert "keys = …: the endpoint gets new keys" in left_out
    assert "hunter2" not in left_out


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "not the fields of an endpoint"),
        ({}, "none of an endpoint"),
        ({"a": 1}, "none of an endpoint"),
        (changed("versions", to={}), "give versions by name, at least one"),
        (changed("versions", to=[]), "give versions by name"),
        (changed("versions", "old", to=1), "versions.old = 1: give the version's fields"),
        (changed("versions", "old", "autoScaler", to=7), "versions.old.autoScaler = 7: give its fields by name"),
        (changed("versions", "old", "trafficPercentile", to="80"), "versions.old.trafficPercentile = '80': give a"),
        (changed("versions", "old", "trafficPercentile", to=True), "trafficPercentile = True: give a number"),
        (changed("versions", "old", "trafficPercentile", to=81), "the sum may not exceed 100"),
        (changed("versions", "old", "trafficPercentile", to=-1), "traffic_percentile"),
        (changed("versions", "old", "scoringTimeoutMs", to=1.5), "scoringTimeoutMs = 1.5: give a whole number"),
        (changed("versions", "old", "scoringTimeoutMs", to=0), "scoring_timeout_ms"),
        (changed("versions", "old", "isDefault", to="yes"), "isDefault = 'yes': give true or false"),
        (changed("versions", "old", "versionType", to="Champion"), "give Control or Treatment"),
        (changed("versions", "old", "tags", to={"a": 1}), "give texts by name"),
        (changed("versions", "old", "containerResourceRequirements", to={"cpu": 2, "cpuLimit": 1}), "a limit may not"),
        (changed("versions", "old", "containerResourceRequirements", to={"cpu": 10**400}), "give a number"),
        (changed("versions", "new", "isDefault", to=True), "exactly one default version"),
        (changed("versions", "old", "isDefault", to=False), "exactly one default version"),
        (changed("versions", "new", "versionType", to="Control"), "one control version"),
        (changed("versions", "V_2", to={"numReplicas": 1}), "V_2"),
        (changed("versions", to={f"v{n}a": {"isDefault": n == 0} for n in range(7)}), "7 versions, at most 6"),
        (changed("aadAuthEnabled", to=True), "keys or tokens, never both"),
        (changed("authEnabled", to="true"), "authEnabled = 'true': give true or false"),
        (changed("name", to=7), "name = 7: give a text"),
        (changed("name", to="Digits"), "Digits"),
        (changed("description", to="\ud800"), "description"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(document: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        read_aks_endpoint(document)
    assert message in str(refused.value)


def test_all_faults_are_said_at_once() -> None:
    document = changed("versions", "old", "isDefault", to="yes") | {"authEnabled": 1}

    with pytest.raises(ArgumentError) as refused:
        read_aks_endpoint(document)

    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the JSON"), ("{", "not the JSON"), ('{"a": NaN}', "NaN is no number"),
        ('{"name": "a", "name": "b"}', "'name': given twice"), ("[" * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "not the JSON"),
    ],
)  # fmt: skip
def test_text_that_is_not_the_json_of_an_endpoint_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        parse_json(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "configuration",
    [
        {"cpu_cores": 0.5, "autoscale_max_replicas": 4, "token_auth_enabled": True, "auth_enabled": False,
         "primary_key": None, "compute_target_name": "aks"},
        {"computeType": "aks", "containerResourceRequirements": {"cpu": 0.5}, "autoScaler": {"maxReplicas": 4},
         "aadAuthEnabled": True, "authEnabled": False},
    ],
    ids=["attributes", "the retired command line's file"],
)  # fmt: skip
def test_a_deployment_configuration_is_a_version_that_gets_its_names(configuration: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"give --version NAME\nthe endpoint has no name: give --endpoint NAME"):
        read_aks_endpoint(configuration)

    endpoint = read_aks_endpoint(configuration, endpoint="digits", version="one").endpoint

    assert (endpoint.auth, endpoint.versions["one"].cpu_cores) == (Auth.TOKEN, 0.5)
    assert endpoint.versions["one"].autoscale_max_replicas == 4
    assert endpoint.versions["one"].is_default


def test_the_command_prints_a_file_and_commands_that_the_command_line_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "endpoint.json"
    file.write_text(json.dumps(ENDPOINT))

    assert main(["import-aksendpoint", str(file)]) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert main(["import-aksendpoint", str(file), "--output", "json"]) == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)

    assert yaml.safe_load(printed) == document["endpoint"]
    assert printed.startswith("# yaml-language-server: $schema=endpoint.schema.json\n")
    assert all(f"# left out: {line}" in printed for line in document["left_out"])
    options = [
        command_parser().parse_args(
            shlex.split(command.replace("IMAGE-OF-old", "a@sha256:1").replace("IMAGE-OF-new", "b@sha256:2"))[1:]
        )
        for command in document["commands"]
    ]
    assert [option.version for option in options] == ["old", "new", "new"]
    assert dict(options[0].settings)["tags"] == {"team": "vision"}
    assert options[2].percentile == 20
    assert main(["import-aksendpoint", str(tmp_path / "nowhere")]) == ExitCode.FAILED


@pytest.mark.parametrize(
    "document", [ENDPOINT, changed("appInsightsEnabled", to=False), changed("aadAuthEnabled", to=True)]
)
def test_what_it_prints_is_the_file_of_an_endpoint_that_deploy_takes(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text(json.dumps({**document, "authEnabled": not document["aadAuthEnabled"]}))
    assert main(["import-aksendpoint", str(tmp_path / "old.json")]) == ExitCode.DONE
    (tmp_path / "endpoint.yaml").write_text(capsys.readouterr().out)

    file = read_endpoint_file(tmp_path / "endpoint.yaml")
    old = command_parser().parse_args(["deploy", "-f", str(tmp_path / "endpoint.yaml"), "old", "--image", IMAGE])
    asked = deployment(old, file)

    imported = read_aks_endpoint({**document, "authEnabled": not document["aadAuthEnabled"]}).endpoint
    made = edits.deploy(
        Endpoint.new("digits", asked.auth or Auth.KEY), "old", image=IMAGE, owner="me@here",
        at=datetime(2026, 1, 5, tzinfo=UTC), settings=asked.settings, about=asked.about,
    )  # fmt: skip
    kept = {"traffic_percentile": 80.0, "image": IMAGE}
    assert made.versions["old"].model_copy(update=kept) == imported.versions["old"].model_copy(update=kept)
    assert made.model_copy(update={"versions": {}}) == imported.model_copy(update={"versions": {}})


def test_its_commands_make_it_so_also_with_several_treatments() -> None:
    document = changed("versions", "third", to={"numReplicas": 1, "trafficPercentile": 5, "versionType": "Treatment"})
    document["versions"]["fourth"] = {"numReplicas": 1, "trafficPercentile": 15, "versionType": "Treatment"}
    document["versions"]["old"]["trafficPercentile"] = 60
    imported = read_aks_endpoint(document)

    made = Endpoint(name="digits")
    for command in imported.commands():
        verb = shlex.split(command)[1]
        options = command_parser().parse_args(shlex.split(command)[1:])
        if verb == "deploy":
            made = edits.deploy(
                made, options.version, image="a@sha256:1", owner="me@here", at=datetime(2026, 1, 5, tzinfo=UTC),
                settings=dict(options.settings or ()),
            )  # fmt: skip
        elif verb == "rollback":
            made = edits.roll_back(made, options.version, owner=None)
        else:
            made = edits.shift(made, options.version, percentile=options.percentile, owner=None, who="me@here")

    assert made.effective_traffic() == imported.endpoint.effective_traffic()
    assert made.effective_traffic() == {"old": 60, "new": 20, "third": 5, "fourth": 15}


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"old": {"isDefault": True}, "new": {"versionType": "Control"}}, "'new' is control, and the default is 'old'"),
        ({"old": {"isDefault": True}, "new": {}}, "no version is control, and the default is 'old'"),
        ({"old": {"isDefault": True, "versionType": "Control"}, "new": {}}, ""),
    ],
)
def test_a_control_that_the_commands_do_not_make_is_said(versions: dict[str, Any], said: str) -> None:
    notes = read_aks_endpoint({"name": "digits", "appInsightsEnabled": True, "versions": versions}).notes
    assert [line[: len(said)] for line in notes] == ([said] if said else [])


def test_what_is_in_the_file_is_not_said_to_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "endpoint.json"
    file.write_text(json.dumps(ENDPOINT | {"tags": {"team": "a"}, "description": "digits", "appInsightsEnabled": None}))

    assert main(["import-aksendpoint", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert not [line for line in lines if line.startswith(("# left out: tags", "# left out: appInsights"))]
    assert (
        "# note: description, tags, properties of the endpoint: in this file; no option of a command sets that" in lines
    )
    assert "tags:" in lines
    assert [line for line in lines if line.startswith("# note: appInsightsEnabled is not set: it is on here")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["Control", "v1a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*VERSION, *ENDPOINT, "v1a"]), inner),
    max_leaves=12,
)


@settings(max_examples=30)
@given(VALUES, st.sampled_from([*ENDPOINT]), st.sampled_from([*VERSION]))
def test_whatever_the_json_says_it_is_taken_or_refused_in_a_sentence(value: Any, field: str, inner: str) -> None:
    for document in (value, changed(field, to=value), changed("versions", "old", inner, to=value)):
        try:
            imported = read_aks_endpoint(document)
        except ArgumentError as error:
            assert str(error)
        else:
            assert yaml.safe_load(yaml.safe_dump(imported.document())) == imported.document()
            assert imported.commands()
