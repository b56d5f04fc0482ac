"""What is handed to a cluster is what the cluster takes: fields and types by schema, scripts by their linter.

Pods are checked against the API that the `kubernetes` client ships; a RayJob's own fields against the rules
below, written down from KubeRay's public reference (v1.7); SkyPilot's from its YAML reference (v0.14).
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.config import load_job
from jobs.document import parse

CLUSTER = Path(str(files("jobs").joinpath("cluster")))
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
SCRIPTS = ("slurm.sh", "with_ray.sh")


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object that has no other properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, NUMBER, COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGTP]i?)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
POD = {"type": "object"}
RAYJOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$"}),
    spec=closed(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        entrypointNumCpus=NUMBER,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        submitterConfig=closed(backoffLimit=COUNT),
        rayClusterSpec=closed(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=closed(
                version={"enum": ["v1", "v2"]},
                upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
                idleTimeoutSeconds=COUNT,
                resources=closed(requests=QUANTITIES, limits=QUANTITIES),
            ),
            headGroupSpec=closed("template", rayStartParams=TEXTS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    "groupName minReplicas maxReplicas template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                ),
            },
        ),
    ),
)
SKYPILOT = closed(
    "resources run",
    name=TEXT,
    workdir=TEXT,
    num_nodes={"type": "integer", "minimum": 1},
    resources=closed(
        infra=TEXT,
        accelerators={"type": "string", "pattern": r"^[A-Za-z0-9-]+(:[0-9]+)?$"},
        use_spot={"type": "boolean"},
        disk_size={"type": "integer"},
        job_recovery={
            **closed(
                strategy={"enum": ["FAILOVER", "EAGER_NEXT_REGION"]},
                max_restarts_on_errors=COUNT,
                recover_on_exit_codes={"type": "array", "items": {"type": "integer", "maximum": 255}},
            )
        },
    ),
    file_mounts=TEXTS,
    envs=TEXTS,
    secrets={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    setup=TEXT,
    run=TEXT,
)


@pytest.fixture
def kuberay() -> dict[str, dict[str, Any]]:
    """The documents of kuberay.yaml by kind."""
    return {doc["kind"]: doc for doc in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())}


def unknown(value: Any, kind: str, path: str = "pod") -> list[str]:
    """Where a value is not what Kubernetes' API says an object of that kind is."""
    client = pytest.importorskip("kubernetes.client")
    if found := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [f for i, item in enumerate(value) for f in unknown(item, found[1], f"{path}[{i}]")]
    if found := re.fullmatch(r"dict\[str, (.*)\]", kind):
        if not isinstance(value, dict):
            return [f"{path}: no mapping"]
        return [f for key, item in value.items() for f in unknown(item, found[1], f"{path}.{key}")]
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
    if kind in plain:
        return [] if isinstance(value, plain[kind]) else [f"{path}: no {kind}"]  # type: ignore[arg-type]
    model = getattr(client, kind)
    names = {theirs: ours for ours, theirs in model.attribute_map.items()}
    if not isinstance(value, dict):
        return [f"{path}: no mapping"]
    flaws = [f"{path}.{key}: unknown" for key in value if key not in names]
    for key, item in value.items():
        if key in names:
            flaws += unknown(item, model.openapi_types[names[key]], f"{path}.{key}")
    return flaws


def test_the_rayjob_has_only_fields_that_kuberay_knows(kuberay: dict[str, dict[str, Any]]) -> None:
    jsonschema.Draft202012Validator(RAYJOB).validate(kuberay["RayJob"])
    assert unknown(kuberay["ConfigMap"], "V1ConfigMap") == []


def test_its_pods_are_pods(kuberay: dict[str, dict[str, Any]]) -> None:
    cluster = kuberay["RayJob"]["spec"]["rayClusterSpec"]
    templates = [group["template"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
    for template in templates:
        assert unknown(template, "V1PodTemplateSpec") == []
        mounted = {m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
        assert template["spec"]["terminationGracePeriodSeconds"] >= 30
    wrong = copy.deepcopy(templates[1])
    wrong["spec"]["tolerations"][0]["efect"] = "NoSchedule"
    wrong["spec"]["containers"][0]["resources"]["limits"]["cpu"] = 8
    assert sorted(unknown(wrong, "V1PodTemplateSpec")) == [
        "pod.spec.containers[0].resources.limits.cpu: no str",
        "pod.spec.tolerations[0].efect: unknown",
    ]


def test_its_job_is_one_that_decant_takes_and_fits_its_pool(
    kuberay: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(kuberay["ConfigMap"]["data"]["job.yaml"])
    job = load_job(file)
    spec = kuberay["RayJob"]["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert job.label.replicas.max == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == f"{job.label.replicas.gpus:g}"
    assert int(container["resources"]["limits"]["cpu"]) >= job.label.replicas.cpus
    # Spot nodes hold replicas and never the driver.
    assert "tolerations" not in spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    words = spec["entrypoint"].split()
    assert words[:2] == ["decant", "label"]
    (mount,) = [
        mount["mountPath"]
        for mount in spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
            "volumeMounts"
        ]
        if mount["name"] == "job"
    ]
    assert words[2] == f"{mount}/job.yaml"


def test_the_command_lines_have_only_options_that_there_are(kuberay: dict[str, dict[str, Any]]) -> None:
    from typer.main import get_command

    from jobs.cli import app

    command = get_command(app).commands["label"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    texts = [kuberay["RayJob"]["spec"]["entrypoint"], *((CLUSTER / name).read_text() for name in SCRIPTS)]
    given = {
        word for text in texts for line in re.findall(r"decant label(.*)", text) for word in line.split()
    }
    assert {word for word in given if word.startswith("--")} <= known


def test_the_skypilot_task_has_only_fields_that_skypilot_knows() -> None:
    task = parse((CLUSTER / "skypilot.yaml").read_text(), "skypilot.yaml")
    jsonschema.Draft202012Validator(SKYPILOT).validate(task)
    checked("#!/usr/bin/env bash\n" + task["setup"])
    checked("#!/usr/bin/env bash\n" + task["run"].replace(". .venv/bin/activate\n", ""))


def checked(script: str) -> None:
    """The script, or the name of one, through shellcheck."""
    if not SHELLCHECK.exists():
        pytest.skip("shellcheck is not installed (`make install` does)")
    where = [script] if script in SCRIPTS else ["-"]
    run = subprocess.run(
        [SHELLCHECK, "--severity=warning", *where],
        input=None if script in SCRIPTS else script,
        capture_output=True,
        text=True,
        cwd=CLUSTER,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_pass_their_linter_and_can_be_executed(name: str) -> None:
    checked(name)
    assert (CLUSTER / name).stat().st_mode & 0o111


def test_slurm_options_come_before_the_first_command() -> None:
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert all(line.startswith("#SBATCH --") for line in options)
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # sbatch would not see them
    assert any("--signal=B:TERM@" in line for line in options)
    assert any(line.startswith("#SBATCH --requeue") for line in options)
