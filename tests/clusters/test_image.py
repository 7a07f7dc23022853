"""The image: what its Containerfile says, and that every version in clusters/ is the one the project is tested with."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.clusters.files import ROOT, kubernetes_documents, of_kind
from tests.clusters.schemas import KUBERAY

pytestmark = pytest.mark.slow  # files that change seldom

INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return (instruction, arguments) of a Containerfile, its continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    steps = [line.split(None, 1) for line in lines.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name.upper(), " ".join(rest.split())) for name, rest in steps]


def image_problems(text: str) -> Iterator[str]:
    """Yield what is wrong with a Containerfile."""
    steps = instructions(text)
    yield from (f"instruction {name} has no place here" for name, _ in steps if name not in INSTRUCTIONS)
    bases = [rest for name, rest in steps if name == "FROM"]
    if len(bases) != 1 or not re.fullmatch(r"\S+:(\d+\.\d+)[\w.-]+", bases[0]):
        yield f"the base image has no version: {bases}"
    users = [rest for name, rest in steps if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield f"ends as user {users[-1:]}: give numbers above 0"
    for name, rest in steps:
        installs = re.findall(r"pip install(.*?)(?:;;|&&|$)", rest) if name == "RUN" else []
        yield from (
            f"installs without constraints:{call}" for call in installs if "--constraint constraints.txt" not in call
        )
        sources = rest.split()[:-1] if name == "COPY" else []
        yield from (f"copies what is not there: {source}" for source in sources if not (ROOT / source).exists())
        yield from (f"copies everything, secrets too: {rest}" for source in sources if source in (".", "./"))
    if "RAY_AUTH_MODE=token" not in " ".join(rest for name, rest in steps if name == "ENV").split():
        yield "Ray would not ask for a token"


def containerfile() -> str:
    (file,) = of_kind("image")
    return file.text


def test_the_image_is_pinned_and_unprivileged() -> None:
    assert list(image_problems(containerfile())) == []
    assert re.findall(r"^ARG DEVICE=cpu$|^ +(cpu|gpu)\)", containerfile(), re.M) == ["", "cpu", "gpu"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("USER 1000:1000", "USER root", "ends as user"),
        ("USER 1000:1000", "", "ends as user"),
        ("python:3.11-slim-bookworm", "python", "no version"),
        ("python:3.11-slim-bookworm", "python:latest", "no version"),
        ("--constraint constraints.txt --editable", "--editable", "without constraints"),
        ("COPY constraints.txt", "COPY requirements.txt", "not there"),
        ("COPY dipole_ray ./dipole_ray", "COPY . ./", "everything"),
        ("ENV RAY_AUTH_MODE=token", "ENV RAY_AUTH_MODE=disabled", "token"),
        ("COPY tune_configs", "ADD https://example.com/x", "ADD"),
    ],
)
def test_a_spoilt_containerfile_is_refused(old: str, new: str, reason: str) -> None:
    assert old in containerfile()
    assert any(reason in problem for problem in image_problems(containerfile().replace(old, new)))


def test_ray_is_one_version_everywhere() -> None:
    (ray,) = [item for item in map(Requirement, PROJECT["dependencies"]) if item.name == "ray"]
    assert ray.specifier.contains(PINS["ray"])
    clusters = [
        item["spec"].get("rayClusterSpec", item["spec"]) for item in kubernetes_documents() if "Ray" in item["kind"]
    ]
    assert [cluster["rayVersion"] for cluster in clusters] == [PINS["ray"]] * 2


def test_images_are_of_this_project_and_its_python() -> None:
    python = re.search(r"python:(\d+\.\d+)", containerfile())
    assert python is not None and SpecifierSet(PROJECT["requires-python"]).contains(python[1])
    images = re.findall(r"image: (\S+)", "".join(file.text for file in of_kind("kubernetes")))
    assert set(images) == {
        f"registry.example.com/dipole-ray:{PROJECT['version']}-{device}" for device in ("cpu", "gpu")
    }


def test_launchers_install_by_the_same_pins() -> None:
    for file in of_kind("launcher"):
        pips = re.findall(r"pip install(.*)", file.text)
        assert any("--constraint ~/dipole_ray/constraints.txt --editable ~/dipole_ray" in line for line in pips)
        (python,) = set(re.findall(r"python(3\.\d+) -m venv", file.text))
        assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_kuberay_is_one_version_everywhere() -> None:
    major_minor = KUBERAY.rsplit(".", 1)[0]
    for file in of_kind("kubernetes"):
        assert set(re.findall(r"KubeRay (\d+\.\d+)", file.text)) <= {major_minor}
    guide = (ROOT / "docs" / "cluster.md").read_text()
    assert f"KubeRay {major_minor} or newer" in guide and f"--version {KUBERAY}" in guide
