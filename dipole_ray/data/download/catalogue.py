"""What can be downloaded: the names that OGBench and ExORL publish, and where their files lie."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal
from urllib.parse import urlsplit

from dipole_ray.errors import ConfigError

Contents = Literal["ogbench", "exorl"]

OFFICIAL: dict[Contents, str] = {
    "ogbench": "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "exorl": "https://dl.fbaipublicfiles.com/exorl",
}
# Environment variables that hold base URLs of mirrors, separated by spaces.
VARIABLES: dict[Contents, str] = {"ogbench": "DIPOLE_OGBENCH_URL", "exorl": "DIPOLE_EXORL_URL"}

_MAZES = ("medium", "large", "giant")
OGBENCH: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pointmaze": ((*_MAZES, "teleport"), ("navigate", "stitch")),
    "antmaze": ((*_MAZES, "teleport"), ("navigate", "stitch", "explore")),
    "humanoidmaze": (_MAZES, ("navigate", "stitch")),
    "antsoccer": (("arena", "medium"), ("navigate", "stitch")),
    "cube": (("single", "double", "triple", "quadruple"), ("play", "noisy")),
    "scene": ((), ("play", "noisy")),
    "puzzle": (("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
}  # per domain its sizes and kinds of data, as in OGBench's own list of commands
_SEEN = ("antmaze", "humanoidmaze", "cube", "scene", "puzzle")  # domains that are published as images, too
_UNPUBLISHED = ("antmaze-giant-explore-v0", "visual-antmaze-giant-explore-v0")

EXORL_DOMAINS = ("cartpole", "cheetah", "jaco", "point_mass_maze", "quadruped", "walker")
EXORL_ALGORITHMS = ("aps", "diayn", "disagreement", "icm", "icm_apt", "proto", "random", "rnd", "smm")

_TASK = re.compile(r"-(singletask(-task\d+)?|oraclerep)(?=-v\d+$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a dataset."""

    path: str  # where it lies below a base URL, and below the folder of downloads
    contents: Contents  # what it must turn out to be

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


def dataset_names(source: Contents) -> list[str]:
    """Return every name that can be downloaded from `source`."""
    if source == "exorl":
        return [f"{domain}/{algorithm}" for domain, algorithm in product(EXORL_DOMAINS, EXORL_ALGORITHMS)]
    names = [
        "-".join([*seen, domain, *([size] if size else []), kind, "v0"])
        for seen in ((), ("visual",))
        for domain, (sizes, kinds) in OGBENCH.items()
        if not seen or domain in _SEEN
        for size, kind in product(sizes or ("",), kinds)
    ]
    return [name for name in names if name not in _UNPUBLISHED]


def dataset_of(source: Contents, name: str) -> str:
    """Return the published dataset that `name` stands for: itself, or the one behind an OGBench task."""
    names = dataset_names(source)
    dataset = _TASK.sub("", name) if source == "ogbench" else name.strip("/")
    if dataset in names:
        return dataset
    if source == "ogbench" and "-100m-" in dataset:
        raise ConfigError(
            f"'{name}' is published as a folder of many files, which this command does not fetch; take the "
            f"1M dataset '{dataset.replace('-100m', '')}', or fetch the folder with wget and import its files"
        )
    near = difflib.get_close_matches(dataset, names, n=3, cutoff=0.4) or names[:3]
    raise ConfigError(f"no {source} dataset '{name}'; the nearest: " + ", ".join(f"'{found}'" for found in near))


def remote_files(source: Contents, dataset: str) -> tuple[RemoteFile, ...]:
    """Return the files of a dataset: training and validation data of OGBench, one archive of ExORL."""
    paths = (f"{dataset}.zip",) if source == "exorl" else (f"{dataset}.npz", f"{dataset}-val.npz")
    return tuple(RemoteFile(path=path, contents=source) for path in paths)


def is_web_address(url: str) -> bool:
    """Return whether this is an address of http or https."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def base_urls(source: Contents, given: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the mirrors in the order to try: `given`, the environment's, the official one; each once."""
    found = [*given, *environ.get(VARIABLES[source], "").split(), OFFICIAL[source]]
    for position, url in enumerate(found):
        where = f"base URL {position + 1}" + ("" if position < len(given) else f" (of {VARIABLES[source]})")
        if not is_web_address(url):
            raise ConfigError(f"{where} is no address of a web server; give one such as {OFFICIAL[source]}")
    return list(dict.fromkeys(found))
