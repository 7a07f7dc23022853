"""Launcher files are such as `ray up` takes them, and the three agree wherever the provider makes no difference."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import ray.scripts.scripts
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.clusters.files import ROOT, Document, kubernetes_documents, of_kind

pytestmark = pytest.mark.slow  # files that change seldom

LAUNCHERS = of_kind("launcher")
RAY_WORKER_PORTS = range(10002, 20000)


def read(file: Any) -> Document:
    return copy.deepcopy(file.documents[0])


def test_the_three_providers_are_there() -> None:
    assert {file.documents[0]["provider"]["type"] for file in LAUNCHERS} == {"aws", "gcp", "local"}


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)
def test_ray_accepts_the_launcher(file: Any) -> None:
    config = prepare_config(read(file))
    validate_config(config)
    types = config["available_node_types"].values()
    assert any(kind["min_workers"] == kind["max_workers"] >= 2 for kind in types), "a run does not wait for autoscaling"
    assert all(kind["min_workers"] == kind["max_workers"] for kind in types if kind["max_workers"])
    for local in config["file_mounts"].values():
        assert local.startswith("~/") or (ROOT / local).exists(), local


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(max_worker=3),
        lambda config: config["provider"].update(region=5),
        lambda config: config["auth"].update(ssh_usr="ubuntu"),
        lambda config: config.update(setup_commands=[{"run": "pip install ray"}]),
        lambda config: config.update(docker={"image": "x", "container_name": "y", "pull": True}),
    ],
)
@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)
def test_ray_refuses_a_typo(file: Any, spoil: Callable[[Document], object]) -> None:
    config = read(file)
    spoil(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("file", [file for file in LAUNCHERS if "available_node_types" in file.documents[0]])
def test_ray_refuses_a_typo_in_a_node_type(file: Any) -> None:
    config = read(file)
    config["available_node_types"]["rollouts"]["min_worker"] = 2
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(config))


def flags(command: str) -> dict[str, str | None]:
    """Return the options after `ray start`, with what they are set to."""
    words = command.split("ray start", 1)[1].split()
    return {word.split("=", 1)[0]: word.split("=", 1)[1] if "=" in word else None for word in words}


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)
def test_ray_knows_every_option_and_no_port_is_a_workers(file: Any) -> None:
    known = {name for parameter in ray.scripts.scripts.start.params for name in parameter.opts}
    config = read(file)
    for role in ("head", "worker"):
        (command,) = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        assert flags(command).keys() <= known
        ports = [int(value) for name, value in flags(command).items() if name.endswith("port") and value]
        assert ports and not set(ports) & set(RAY_WORKER_PORTS)
        assert int(re.findall(r":(\d+)", command)[0] if role == "worker" else flags(command)["--port"] or 0) == 6379


def test_kuberay_start_parameters_are_options_of_ray_start() -> None:
    known = {name.removeprefix("--") for parameter in ray.scripts.scripts.start.params for name in parameter.opts}
    clusters = [
        item["spec"].get("rayClusterSpec", item["spec"]) for item in kubernetes_documents() if "Ray" in item["kind"]
    ]
    assert len(clusters) == 2
    for cluster in clusters:
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["rayStartParams"].keys() <= known
        fixed = [
            {group["replicas"], group["minReplicas"], group["maxReplicas"]} for group in cluster["workerGroupSpecs"]
        ]
        assert all(len(counts) == 1 for counts in fixed), "a run does not wait for autoscaling"


def test_the_launchers_agree() -> None:
    first, *others = [read(file) for file in LAUNCHERS]
    for other in others:
        for name in ("cluster_name", "file_mounts", "rsync_exclude", "worker_start_ray_commands"):
            assert other[name] == first[name]
        assert other["setup_commands"][-2:] == first["setup_commands"][-2:]
        assert other["head_start_ray_commands"][:2] == first["head_start_ray_commands"][:2]
    for config in (first, *others):
        assert any("/mnt/dipole" in command for command in config["setup_commands"]), "no shared folder"
