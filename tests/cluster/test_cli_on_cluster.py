"""The command line on a real cluster: the same commands as on a laptop, the workspace in a file."""

import json
import re

import pytest
import yaml

from controlled_rollout.cli import main
from tests.cluster.sandbox import Sandbox

SMALL = ["--set", "cpu_cores=0.02", "--set", "memory_gb=0.2", "--set", "num_replicas=1"]


def test_a_rollout_by_hand_on_a_cluster(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = sandbox.endpoint
    settings = sandbox.workspace.model_dump(mode="json", exclude_none=True)
    file = sandbox.workspace.root / "cluster.yaml"
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("CONTROLLED_ROLLOUT_WORKSPACE", str(file))

    def run(*command: str) -> tuple[int, str, str]:
        code = main([*command, "--timeout", "120"] if command[0] in STEPS else [*command])
        output = capsys.readouterr()
        return code, output.out, output.err

    assert run("status") == (0, "there are no endpoints\n", "")
    assert run("deploy", name, "one", "--image", sandbox.images["steady"], *SMALL)[::2] == (0, "")
    assert run("deploy", name, "two", "--image", sandbox.images["steady2"], *SMALL)[::2] == (0, "")

    code, out, err = run("endpoint", "score", name, "--data", '{"data": [1]}')
    assert (code, json.loads(out)["version"]) == (0, "steady")
    assert re.fullmatch(r"200 from one after \d+ ms\n", err)
    code, out, _ = run("endpoint", "score", name, "--data", '{"data": [1]}', "--version", "two")
    assert (code, json.loads(out)["version"]) == (0, "steady2")

    # The node's processes reach the registry on loopback; in a pod that address is the pod's own.
    to = ("--to", f"tcp://{sandbox.lab.registry}", "--to", f"http://{name}.invalid")
    code, out, _ = run("check", name, "--version", "two", *to, "--output", "json")
    checked = {(each["origin"], each["name"]): each for each in json.loads(out)}
    own, unknown = sandbox.lab.registry, f"{name}.invalid:80"
    assert {each["outcome"] for each in checked.values() if each["name"] not in (own, unknown)} <= {"works", "closed"}
    assert checked["pods", "pod"]["message"].endswith(f"with the labels of version two of endpoint {name}")
    assert [checked[origin, own]["outcome"] for origin in ("worker", "pods")] == ["works", "FAILS"]
    assert [checked[origin, unknown]["probe"]["failed"] for origin in ("worker", "pods")] == ["DNS", "DNS"]
    assert checked["pods", "API server"]["probe"]["passed"] == ["DNS", "TCP", "TLS", "HTTP"]
    assert code == 1
    assert sandbox.kubectl("get", "pods", "--selector", "controlled-rollout/check", "--output", "name") == ""
    code, out, _ = run("check")
    assert (code, out.splitlines()[-1]) == (0, "not checked from the pods: name an endpoint for that")

    code, out, _ = run("shift", name, "two", "50")
    assert (code, "one 50 %, two 50 %" in out) == (0, True)
    assert run("logs", name, "two", "--tail", "20")[0] == 0
    old = json.loads(run("keys", name, "--output", "json")[1])
    new = json.loads(run("keys", name, "--regenerate", "secondary", "--output", "json")[1])
    assert new["primary"] == old["primary"]
    assert new["secondary"] != old["secondary"]

    assert run("rollback", name, "two", "--reason", "not today")[0] == 0
    assert run("promote", name, "two")[0] == 0
    assert run("retire", name, "one")[0] == 0
    lines = run("status", name)[1].splitlines()
    assert lines[0].startswith(f"{name}  {sandbox.url}  revision ")
    assert [line.split()[:2] for line in lines[1:]] == [["version", "role"], ["two", "control,"]]
    document = json.loads(run("status", name, "--output", "json")[1])
    assert document["revision"] == document["served_revision"]

    assert run("delete", name, "--yes") == (0, f"endpoint {name!r} is deleted\n", "")
    assert run("delete", name, "--yes") == (0, f"there is no endpoint {name!r}: nothing to delete\n", "")
    assert run("status") == (0, "there are no endpoints\n", "")


STEPS = ("deploy", "shift", "promote", "rollback", "retire")
