"""Kubernetes documents against their schemas: core kinds by the published ones, KubeRay's by its API reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.clusters.files import Document

KUBERNETES = "1.33"
"""The Kubernetes version whose schemas are applied, strictly: unknown fields are errors."""

_REFERENCE = yaml.safe_load((Path(__file__).parent / "kuberay_fields.yaml").read_text())
KUBERAY: str = _REFERENCE["kuberay"]
_TYPES: dict[str, dict[str, Any]] = _REFERENCE["types"]
_PLAIN = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def schema_problems(document: Document) -> list[str]:
    """Return what is wrong with one document, with the place of each fault."""
    if str(document.get("apiVersion", "")).startswith("ray.io/"):
        if document["apiVersion"] != "ray.io/v1":
            return [f"apiVersion {document['apiVersion']}: KubeRay serves ray.io/v1"]
        return list(_fields(document, str(document.get("kind")), str(document.get("kind"))))
    return list(_core(document, str(document.get("kind"))))


def _core(document: Document, where: str) -> Iterator[str]:
    """Yield the fault that the published schema of a core kind finds."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join([where, *map(str, error.path)])}: {error.message}"
    except (kubernetes_validate.SchemaNotFoundError, KeyError) as error:
        yield f"{where}: no published schema ({error})"


def _fields(value: Any, kind: str, where: str) -> Iterator[str]:
    """Yield the faults of a mapping of a KubeRay type."""
    if kind not in _TYPES:
        yield f"{where}: {kind} is not in KubeRay {KUBERAY}'s reference as far as it is checked in here"
    elif not isinstance(value, dict):
        yield f"{where}: a {kind} is needed, found {value!r}"
    else:
        fields = _TYPES[kind]
        yield from (f"{where}.{name}: {kind} has no such field" for name in value if name not in fields)
        for name, declared in fields.items():
            if name in value:
                yield from _value(value[name], declared, f"{where}.{name}")
            elif isinstance(declared, str) and declared.endswith("!"):
                yield f"{where}.{name}: required"


def _value(value: Any, declared: str | list[str], where: str) -> Iterator[str]:
    """Yield the faults of one field's value."""
    if isinstance(declared, list):
        if value not in declared:
            yield f"{where}: {value!r} is none of {declared}"
        return
    kind = declared.rstrip("!")
    if kind.endswith("*"):
        if not isinstance(value, list):
            yield f"{where}: a list is needed, found {value!r}"
            return
        for index, item in enumerate(value):
            yield from _value(item, kind[:-1], f"{where}[{index}]")
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (kind != "boolean" and isinstance(value, bool)):
            yield f"{where}: a {kind} is needed, found {value!r}"
    elif kind == "map":
        if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
            yield f"{where}: strings by name are needed, found {value!r} (numbers want quotes)"
    elif kind == "PodTemplateSpec":
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": value}
        yield from _core(whole, where)
    elif kind == "ObjectMeta":
        yield from _core({"apiVersion": "v1", "kind": "PodTemplate", "metadata": value}, where)
    else:
        yield from _fields(value, kind, where)
