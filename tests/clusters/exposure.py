"""What would open a cluster to strangers: secrets in files, Ray without a token, ports, privileged pods."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.clusters.files import Document

LOOPBACK = ("127.0.0.1", "localhost")
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
DASHBOARD_PORT = 8265

SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an AWS key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a provider's token": re.compile(r"\b(ghp_|github_pat_|glpat-|xox[bp]-|hf_|AIza|sk-)[\w-]{16,}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}"),
    "a long hexadecimal number": re.compile(r"\b[0-9a-fA-F]{32,}\b"),
    "credentials in an address": re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
    # A literal value; a path, a variable or a reference is none.
    "a literal password or token": re.compile(
        r"(?i)(password|passwd|secret|token|credentials?|api[_-]?key|access[_-]?key)\b[\"']?\s*[:=]\s*[\"']?"
        r"(?!true\b|false\b|null\b)[^\s\"',~/${}<]{5,}"
    ),
}


def secrets_in(text: str) -> list[str]:
    """Return what looks like a secret, by line."""
    lines = enumerate(text.splitlines(), 1)
    return [f"line {n}: {what}" for n, line in lines for what, form in SECRETS.items() if form.search(line)]


def launcher_problems(config: Document) -> list[str]:
    """Return what is unsafe in a launcher's config, as `ray up` completes it: Ray's defaults count."""
    return [*_starts(config), *_launcher_files(config)]


def _starts(config: Document) -> Iterator[str]:
    """Yield what is unsafe in the commands that start Ray and MLflow."""
    for role in ("head", "worker"):
        lines = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        if len(lines) != 1:
            yield f"{role}: {len(lines)} commands with 'ray start'"
        for line in lines:
            if not re.search(r"\bRAY_AUTH_MODE=token ray start\b", line):
                yield f"{role}: Ray starts without RAY_AUTH_MODE=token"
            host = re.search(r"--dashboard-host[= ](\S+)", line)
            if role == "head" and (host is None or host[1] not in LOOPBACK):
                yield f"head: the dashboard listens on {host[1] if host else 'no stated address'}"
    commands = [str(item) for name, items in config.items() if name.endswith("_commands") for item in items]
    for command in commands:
        if re.search(r"RAY_AUTH_MODE=(?!token\b)", command):
            yield f"authentication turned off: {command}"
        if "mlflow server" in command and not re.search(r"--host[= ]127\.0\.0\.1\b", command):
            yield f"MLflow listens beyond localhost: {command}"


def _launcher_files(config: Document) -> Iterator[str]:
    """Yield what is unsafe in what is copied and how nodes are reached."""
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        yield "the token does not reach the nodes: file_mounts lacks ~/.ray/auth_token"
    key = config["auth"].get("ssh_private_key", "~/")
    if not str(key).startswith(("~/", "/")) or "\n" in str(key):
        yield "auth.ssh_private_key is no path"


def kubernetes_problems(documents: Sequence[Document]) -> list[str]:
    """Return what is unsafe in all Kubernetes documents together: a policy in one protects the pods of another."""
    problems = []
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        problems += [f"{where}: {text}" for text in _document(document, documents)]
    return problems


def _document(document: Document, documents: Sequence[Document]) -> Iterator[str]:
    kind, spec = document["kind"], document.get("spec") or {}
    if kind in ("Secret", "Ingress", "Gateway", "HTTPRoute"):
        yield f"no {kind} belongs in a file here"
    if kind == "Service" and spec.get("type", "ClusterIP") != "ClusterIP":
        yield f"type {spec['type']} opens a port to the outside"
    if kind == "Deployment":
        yield from _pod(spec["template"], documents)
        yield from _mlflow(spec["template"])
    if kind == "RayJob":
        yield from _pod(spec["submitterPodTemplate"], documents)
    cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec") if kind == "RayJob" else None
    if cluster is not None:
        yield from _ray(cluster, documents, asked_by_operator=kind == "RayJob")


def _ray(cluster: Document, documents: Sequence[Document], *, asked_by_operator: bool) -> Iterator[str]:
    """Yield what is unsafe in a RayClusterSpec."""
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token"
    # KubeRay makes it 0.0.0.0 where nothing is said.
    host = head["rayStartParams"].get("dashboard-host", "0.0.0.0")
    if host not in LOOPBACK:
        if not asked_by_operator:
            yield f"the dashboard listens on {host}"
        elif not _only_operator_enters(head["template"], documents):
            yield f"the dashboard listens on {host}, and no policy keeps all but the operator out"
    if head.get("enableIngress") or head.get("serviceType", "ClusterIP") != "ClusterIP" or "headService" in head:
        yield "the head's service is opened to the outside"
    for group in (head, *groups):
        yield from _pod(group["template"], documents)


def _pod(template: Document, documents: Sequence[Document]) -> Iterator[str]:
    """Yield what is unsafe in a pod template."""
    spec = template["spec"]
    context = spec.get("securityContext", {})
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    yield from (f"volume {volume['name']} is the host's" for volume in spec.get("volumes", ()) if "hostPath" in volume)
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser", 0) > 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if spec.get("automountServiceAccountToken") is not False:
        yield "is given a token of the Kubernetes API"
    if not _policies(template, documents):
        yield "no NetworkPolicy restricts who reaches its pods"
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        yield from (f"container {container['name']} {text}" for text in _container(container))


def _container(container: Document) -> Iterator[str]:
    context = container.get("securityContext", {})
    capabilities = context.get("capabilities", {})
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "keeps capabilities"
    if context.get("runAsUser", 1) == 0 or context.get("runAsNonRoot") is False:
        yield "runs as root"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "takes a port of the host"
    if re.search(r":latest$|:[^:]*/|^[^:@]*$", container["image"]):
        yield f"has an image without a version: {container['image']}"
    for variable in container.get("env", ()):
        if re.search(r"TOKEN|PASSWORD|SECRET|KEY|CREDENTIAL", variable["name"]) and "value" in variable:
            yield f"has {variable['name']} in the open; name a Secret by valueFrom"
        if variable["name"] == "RAY_AUTH_MODE" and variable.get("value") != "token":
            yield "turns authentication off"


def _mlflow(template: Document) -> Iterator[str]:
    """Yield what is unsafe in the command of an MLflow server."""
    for container in template["spec"]["containers"]:
        command = " ".join([*container.get("command", ()), *container.get("args", ())])
        hosts = re.search(r"--allowed-hosts[= ](\S+)", command)
        if "mlflow server" in command and (hosts is None or "*" in hosts[1] or "--disable-security" in command):
            yield "MLflow answers to any Host header"


def _policies(template: Document, documents: Sequence[Document]) -> list[Document]:
    """Return the specs of the policies that restrict who reaches a template's pods."""
    labels = template.get("metadata", {}).get("labels", {}).items()
    specs = [item["spec"] for item in documents if item["kind"] == "NetworkPolicy"]
    return [
        spec
        for spec in specs
        if "Ingress" in spec.get("policyTypes", ()) and labels >= spec["podSelector"].get("matchLabels", {}).items()
    ]


def _only_operator_enters(template: Document, documents: Sequence[Document]) -> bool:
    """Return whether the policies let in the pods' own kind and, on the dashboard's port, the operator alone."""
    own = template["metadata"]["labels"]
    policies = _policies(template, documents)
    rules: list[Any] = [rule for policy in policies for rule in policy.get("ingress", ())]
    for rule in rules:
        ports = [port.get("port") for port in rule.get("ports", ())]
        peers = rule.get("from", ())
        selected = [peer.get("podSelector", {}).get("matchLabels") for peer in peers]
        is_own = (
            peers and all(labels == own for labels in selected) and not any("namespaceSelector" in p for p in peers)
        )
        is_operator = peers and all(labels == OPERATOR for labels in selected) and ports == [DASHBOARD_PORT]
        if not (is_own or is_operator):
            return False
    return bool(policies)
