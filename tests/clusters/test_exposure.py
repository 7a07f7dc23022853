"""Row S2 of docs/reliability.md: what is deployed from here asks for a token, listens inside, and holds no secret."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from tests.clusters.exposure import kubernetes_problems, launcher_problems, secrets_in
from tests.clusters.files import CLUSTERS, ROOT, Document, all_files, kubernetes_documents, of_kind, parse

pytestmark = pytest.mark.slow  # files that change seldom

TEXTS = [*(file.path for file in all_files()), ROOT / "docs" / "cluster.md"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Any) -> None:
    assert secrets_in(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "password: hunter2hunter2",
        "      value: postgresql://mlflow:hunter2@db:5432/mlflow",
        "RAY_AUTH_TOKEN=0123456789abcdef ray start --head",
        'auth_token: "c29tZXRoaW5n"',
        "aws_secret_access_key = wJalrXUtnFEMIK7MDENG",
        "key: AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "  - name: x\n    data: 8f14e45fceea167a5a36dedd4bea2543aa",
    ],
)
def test_a_secret_is_found_wherever_it_is_put(line: str) -> None:
    for file in all_files():
        assert secrets_in(f"{file.text}\n{line}\n") != []


@pytest.mark.parametrize("file", of_kind("launcher"), ids=lambda file: file.name)
def test_launchers_are_closed(file: Any) -> None:
    assert launcher_problems(prepare_config(copy.deepcopy(file.documents[0]))) == []


def _replace_in(name: str, old: str, new: str) -> Callable[[Document], None]:
    def spoil(config: Document) -> None:
        before = yaml.safe_dump(config[name])
        config[name] = yaml.safe_load(before.replace(old, new))
        assert yaml.safe_dump(config[name]) != before, f"nothing to replace: {old}"

    return spoil


LAUNCHER_HOLES: list[tuple[Callable[[Document], object], str]] = [
    (_replace_in("head_start_ray_commands", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "0.0.0.0"),
    (_replace_in("head_start_ray_commands", "--dashboard-host=127.0.0.1", ""), "no stated address"),
    (_replace_in("head_start_ray_commands", "RAY_AUTH_MODE=token ray", "ray"), "head: Ray starts without"),
    (_replace_in("worker_start_ray_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"), "turned off"),
    (_replace_in("head_start_ray_commands", "--host 127.0.0.1", "--host 0.0.0.0"), "MLflow listens beyond"),
    (_replace_in("setup_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"), "turned off"),
    (lambda config: config.pop("worker_start_ray_commands"), "worker: Ray starts without"),  # Ray's own default
    (lambda config: config.pop("head_start_ray_commands"), "head: Ray starts without"),
    (lambda config: config["file_mounts"].pop("~/.ray/auth_token"), "token does not reach"),
    (lambda config: config["auth"].update(ssh_private_key="-----BEGIN\nx"), "no path"),
]


@pytest.mark.parametrize(("spoil", "reason"), LAUNCHER_HOLES)
@pytest.mark.parametrize("file", of_kind("launcher"), ids=lambda file: file.name)
def test_a_hole_in_a_launcher_is_found(file: Any, spoil: Callable[[Document], object], reason: str) -> None:
    config = copy.deepcopy(file.documents[0])
    spoil(config)
    assert any(reason in problem for problem in launcher_problems(prepare_config(config)))


def test_manifests_are_closed() -> None:
    assert kubernetes_problems(kubernetes_documents()) == []


def _pod_of(documents: list[Document], kind: str) -> Any:
    spec = next(item for item in documents if item["kind"] == kind)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    return spec["template"]["spec"] if kind == "Deployment" else cluster["headGroupSpec"]["template"]["spec"]


def _spec_of(documents: list[Document], kind: str, index: int = 0) -> Any:
    return [item for item in documents if item["kind"] == kind][index]["spec"]


def _head(documents: list[Document], kind: str) -> Any:
    spec = _spec_of(documents, kind)
    return spec.get("rayClusterSpec", spec)["headGroupSpec"]


def _env(documents: list[Document], kind: str, name: str, value: str) -> None:
    _pod_of(documents, kind)["containers"][0].setdefault("env", []).append({"name": name, "value": value})


MANIFEST_HOLES: list[tuple[Callable[[list[Document]], object], str]] = [
    (lambda d: _spec_of(d, "RayCluster")["authOptions"].update(mode="disabled"), "RayCluster dipole: authOptions"),
    (lambda d: _spec_of(d, "RayJob")["rayClusterSpec"].pop("authOptions"), "RayJob dipole-train: authOptions"),
    (lambda d: _head(d, "RayCluster")["rayStartParams"].update({"dashboard-host": "0.0.0.0"}), "listens on 0.0.0.0"),
    (lambda d: _head(d, "RayCluster")["rayStartParams"].pop("dashboard-host"), "listens on 0.0.0.0"),
    (lambda d: _spec_of(d, "NetworkPolicy")["ingress"].append({}), "no policy keeps"),
    (lambda d: _spec_of(d, "NetworkPolicy")["ingress"][1].pop("ports"), "no policy keeps"),
    (lambda d: _spec_of(d, "NetworkPolicy")["ingress"][0]["from"][0].update(namespaceSelector={}), "no policy keeps"),
    (lambda d: _spec_of(d, "NetworkPolicy").update(policyTypes=["Egress"]), "no NetworkPolicy restricts"),
    (lambda d: _spec_of(d, "NetworkPolicy", 1)["podSelector"].update(matchLabels={"a": "b"}), "no NetworkPolicy"),
    (lambda d: _head(d, "RayCluster").update(serviceType="LoadBalancer"), "opened to the outside"),
    (lambda d: _head(d, "RayJob").update(enableIngress=True), "opened to the outside"),
    (lambda d: _spec_of(d, "Service").update(type="NodePort"), "opens a port"),
    (lambda d: d.append({"kind": "Secret", "metadata": {"name": "s"}}), "no Secret belongs"),
    (lambda d: _pod_of(d, "RayCluster").update(hostNetwork=True), "hostNetwork"),
    (lambda d: _pod_of(d, "RayJob")["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "the host's"),
    (lambda d: _pod_of(d, "RayJob")["securityContext"].pop("runAsUser"), "may run as root"),
    (lambda d: _pod_of(d, "Deployment")["securityContext"].update(runAsNonRoot=False), "may run as root"),
    (lambda d: _pod_of(d, "Deployment")["securityContext"].pop("seccompProfile"), "seccomp"),
    (lambda d: _pod_of(d, "RayCluster").pop("automountServiceAccountToken"), "Kubernetes API"),
    (lambda d: _pod_of(d, "Deployment")["containers"][0].pop("securityContext"), "keeps capabilities"),
    (lambda d: _pod_of(d, "RayJob")["containers"][0]["securityContext"].update(privileged=True), "privileges"),
    (lambda d: _pod_of(d, "RayJob")["containers"][0].update(image="registry.example.com/dipole-ray"), "version"),
    (lambda d: _pod_of(d, "RayJob")["containers"][0].update(image="dipole-ray:latest"), "version"),
    (lambda d: _pod_of(d, "RayJob")["containers"][0]["ports"][0].update(hostPort=6379), "port of the host"),
    (lambda d: _env(d, "RayCluster", "RAY_AUTH_TOKEN", "x"), "in the open"),
    (lambda d: _env(d, "RayCluster", "RAY_AUTH_MODE", "disabled"), "turns authentication off"),
    (lambda d: _pod_of(d, "Deployment")["containers"][0]["args"].append("--disable-security-middleware"), "any Host"),
    (lambda d: _pod_of(d, "Deployment")["containers"][0]["args"].pop(), "any Host"),
]


@pytest.mark.parametrize(("spoil", "reason"), MANIFEST_HOLES)
def test_a_hole_in_a_manifest_is_found(spoil: Callable[[list[Document]], object], reason: str) -> None:
    documents = copy.deepcopy(kubernetes_documents())
    spoil(documents)
    assert any(reason in problem for problem in kubernetes_problems(documents))


def test_a_file_of_unknown_kind_and_a_key_given_twice_are_refused() -> None:
    with pytest.raises(AssertionError, match="no known kind"):
        parse(CLUSTERS / "start.sh", "ray start --head")
    with pytest.raises(yaml.YAMLError, match="twice"):
        parse(CLUSTERS / "kuberay" / "x.yaml", "spec: {}\nspec: {hostNetwork: true}\n")
