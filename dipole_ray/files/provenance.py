"""Where a result comes from: versions of the packages that matter, the commit of the code, the digest of a config."""

import hashlib
import json
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "numpy", "pyarrow", "gymnasium", "mujoco", "dm_control", "ogbench", "mlflow", "safetensors")


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python, dipole_ray and the packages a result depends on; absent ones are left out."""
    from dipole_ray import __version__

    versions = {"python": platform.python_version(), "dipole_ray": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@cache
def git_commit() -> str | None:
    """Return the commit of the source tree, with `+changes` if tracked files differ; None outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        tracked = _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    # An installed copy may lie inside somebody else's repository, whose commit says nothing about it.
    return (f"{commit}+changes" if changes else commit) if tracked else None


def _git(*arguments: str) -> str:
    """Return what a git command prints in this folder."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]  # `git` from the user's PATH is meant
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def digest(plain: Any, digits: int = 8) -> str:
    """Return the first hex digits of the SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:digits]
