"""Every file of clusters/, found and parsed by its kind; one of no known kind is an error, not an omission."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CLUSTERS = ROOT / "clusters"

Document = dict[str, Any]


@dataclass(frozen=True)
class ParsedFile:
    """One file: its kind (`launcher`, `kubernetes`, `image`, `program` or `text`), text, and YAML documents."""

    path: Path
    kind: str
    text: str
    documents: tuple[Document, ...] = ()

    @property
    def name(self) -> str:
        return str(self.path.relative_to(CLUSTERS))


class OneKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key given twice instead of forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{sorted(map(str, twice))} given twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def parse(path: Path, text: str) -> ParsedFile:
    """Return the file by its kind."""
    if path.name == "Containerfile":
        return ParsedFile(path, "image", text)
    if path.suffix == ".py":
        return ParsedFile(path, "program", text)
    if path.suffix == ".md":
        return ParsedFile(path, "text", text)
    if path.suffix != ".yaml":
        raise AssertionError(f"{path}: a file of no known kind; say in {__file__} how it is checked")
    documents = tuple(yaml.load_all(text, Loader=OneKeyLoader))  # a SafeLoader
    return ParsedFile(path, path.parent.name.replace("kuberay", "kubernetes"), text, documents)


@cache
def all_files() -> tuple[ParsedFile, ...]:
    """Return every file under clusters/ but what Python compiled there."""
    files = (path for path in sorted(CLUSTERS.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return tuple(parse(path, path.read_text()) for path in files)


def of_kind(kind: str) -> list[ParsedFile]:
    return [file for file in all_files() if file.kind == kind]


def kubernetes_documents() -> list[Document]:
    return [document for file in of_kind("kubernetes") for document in file.documents]
