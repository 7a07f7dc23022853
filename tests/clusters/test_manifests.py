"""Every manifest in clusters/kuberay is one that Kubernetes and KubeRay accept, as far as their schemas tell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.clusters.files import Document, kubernetes_documents, of_kind
from tests.clusters.schemas import schema_problems

pytestmark = pytest.mark.slow  # files that change seldom


def named(kind: str, name: str | None = None) -> Document:
    """Return a copy of a document of ours, to be spoilt."""
    found = [
        item for item in kubernetes_documents() if item["kind"] == kind and name in (None, item["metadata"]["name"])
    ]
    return copy.deepcopy(found[0])


def head(document: Document) -> dict[str, Any]:
    return document["spec"]["headGroupSpec"]


def test_all_kinds_are_there() -> None:
    kinds = {document["kind"] for document in kubernetes_documents()}
    assert kinds >= {"RayCluster", "RayJob", "Deployment", "Service", "PersistentVolumeClaim", "NetworkPolicy"}


@pytest.mark.parametrize("file", of_kind("kubernetes"), ids=lambda file: file.name)
def test_documents_fit_their_schemas(file: Any) -> None:
    assert file.documents
    for document in file.documents:
        assert schema_problems(document) == []
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "dipole"


def test_what_is_mounted_and_called_is_there() -> None:
    """Claims by name, MLflow's address, and the namespace: a rename in one file alone is found."""
    text = "".join(file.text for file in of_kind("kubernetes"))
    claims = {item["metadata"]["name"] for item in kubernetes_documents() if item["kind"] == "PersistentVolumeClaim"}
    used = {line.split(":")[1].strip() for line in text.splitlines() if line.strip().startswith("claimName:")}
    assert used == claims
    service = named("Service")
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert text.count(f"value: {address}") == 2
    assert f"--allowed-hosts={address.removeprefix('http://')}," in text
    selector = service["spec"]["selector"].items()
    assert selector <= named("Deployment")["spec"]["template"]["metadata"]["labels"].items()


SPOILT: list[tuple[str, Callable[[Document], object], str, str]] = [
    ("RayCluster", lambda d: d["spec"].update(authOption={"mode": "token"}), "authOption", "no such field"),
    ("RayCluster", lambda d: d["spec"]["authOptions"].update(mode="tokens"), "authOptions.mode", "none of"),
    ("RayCluster", lambda d: head(d)["rayStartParams"].update({"num-cpus": 2}), "rayStartParams", "quotes"),
    ("RayCluster", lambda d: head(d).pop("template"), "headGroupSpec.template", "required"),
    ("RayCluster", lambda d: d["spec"]["workerGroupSpecs"][0].update(replicas="2"), "[0].replicas", "integer"),
    ("RayCluster", lambda d: d["spec"]["workerGroupSpecs"][0].update(replica=2), "[0].replica", "no such field"),
    ("RayCluster", lambda d: d["spec"].update(networkPolicy={"mode": "DenyAll"}), "networkPolicy", "no such field"),
    ("RayCluster", lambda d: d.update(apiVersion="ray.io/v1alpha1"), "apiVersion", "ray.io/v1"),
    ("RayCluster", lambda d: head(d)["template"]["spec"].update(contianers=[]), "template.spec", "contianers"),
    ("RayCluster", lambda d: head(d)["template"]["spec"]["containers"][0].pop("name"), "containers.0", "name"),
    ("RayCluster", lambda d: head(d)["template"]["spec"]["volumes"][0].update(name=5), "volumes.0.name", "string"),
    ("RayJob", lambda d: d["spec"].update(entryPoint="x"), "RayJob.spec.entryPoint", "no such field"),
    ("RayJob", lambda d: d["spec"].update(submissionMode="Kubernetes"), "submissionMode", "none of"),
    ("RayJob", lambda d: d["spec"]["submitterPodTemplate"]["spec"].update(restart="x"), "submitterPod", "restart"),
    ("RayJob", lambda d: d.update(kind="RayJobs"), "RayJobs", "not in KubeRay"),
    ("Deployment", lambda d: d["spec"]["template"]["spec"]["containers"][0].update(img="x"), "containers.0", "img"),
    ("Deployment", lambda d: d["spec"].pop("selector"), "Deployment.spec", "selector"),
    ("Service", lambda d: d["spec"]["ports"][0].update(port="5000"), "ports.0.port", "integer"),
    ("PersistentVolumeClaim", lambda d: d["spec"].update(accessMode=[]), "spec", "accessMode"),
    ("NetworkPolicy", lambda d: d["spec"]["ingress"][0].update(ports=[{"port": 1, "proto": 1}]), "ports.0", "proto"),
    ("Namespace", lambda d: d.update(apiVersion="v9"), "Namespace", "no published schema"),
]


@pytest.mark.parametrize(("kind", "spoil", "place", "reason"), SPOILT)
def test_a_spoilt_manifest_is_refused(kind: str, spoil: Callable[[Document], object], place: str, reason: str) -> None:
    document = named(kind)
    spoil(document)
    (problem, *_) = schema_problems(document)
    assert place in problem and reason in problem
