"""Nothing of ours unpickles, or otherwise runs, what it loads: whoever adds a way to, meets this file.

What Ray hands from process to process is pickled by Ray itself and never comes from a file of ours (docs/reliability.md
says which files of Tune's are pickles).
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "dbm", "marshal"),
    *("jsonpickle", "hickle", "sklearn", "h5py", "runpy"),
}
"""Importing one of these, or a submodule so called, is enough."""
NAMES = {
    *("torch.load", "torch.save", "torch.hub", "torch.package", "torch.jit.load", "torch.export.load"),
    *("torch.serialization", "torch.utils.model_zoo", "pandas.read_pickle", "pandas.read_hdf", "pyarrow.deserialize"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader"),
    *("numpy.lib.format.read_array", "numpy.fromstring", "mlflow.pytorch", "mlflow.pyfunc", "mlflow.sklearn"),
    *("ray.tune.Tuner.restore", "ray.train.load", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("builtins.__import__", "importlib.import_module", "importlib.reload", "importlib.util.spec_from_file_location"),
}
"""Using one of these, or anything below it, by whatever name it was imported."""
ALLOWED = {
    ("dipole_ray/__init__.py", "importlib.import_module"): "its own modules, by a table in the same file",
    ("dipole_ray/agents/factories.py", "importlib.import_module"): "the module of a network `module:factory`",
    ("dipole_ray/envs/registry.py", "importlib.import_module"): "OGBench, and the module of an id `module:Name-v0`",
    ("dipole_ray/data/sources/hdf5.py", "h5py"): "plain arrays of numbers, of which none is a pickle",
    ("dipole_ray/driving/pickles.py", "pickle"): "NAVSIM's logs, by a machine of its own that runs nothing they name",
    ("dipole_ray/envs/gl.py", "importlib.import_module"): "MuJoCo's, by a constant name",
    ("dipole_ray/envs/gl.py", "importlib.reload"): "MuJoCo's and dm_control's, by constant names",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def forbidden(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, what) for every use of something that could run what is loaded."""
    tree = ast.parse(source)
    names = {name: f"builtins.{name}" for name in BUILTINS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                yield from ((node.lineno, alias.name) for _ in MODULES & set(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = dotted
                if MODULES & set(dotted.split(".")) or is_named(dotted):
                    yield node.lineno, dotted
    inside = {child for node in ast.walk(tree) if isinstance(node, ast.Attribute) for child in [node.value]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and node not in inside:
            found = dotted_name(node, names)
            if found is not None and (is_named(found) or MODULES & set(found.split(".")[1:])):
                yield node.lineno, found
        elif isinstance(node, ast.Call):
            yield from calls(node, names)


def calls(node: ast.Call, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield what a call's arguments allow that they should not."""
    called = dotted_name(node.func, names)
    arguments = {item.arg: item.value for item in node.keywords}
    for name, safe in (("allow_pickle", False), ("weights_only", True)):
        if name in arguments and getattr(arguments[name], "value", None) is not safe:
            yield node.lineno, name
    if called == "numpy.load" and "allow_pickle" not in arguments:
        yield node.lineno, "numpy.load without allow_pickle=False"
    if called == "getattr" and len(node.args) > 1 and getattr(node.args[1], "value", "") in ("load", "loads"):
        yield node.lineno, "getattr(..., 'load')"
    if called in ("importlib.import_module", "builtins.__import__") and node.args:
        constant = getattr(node.args[0], "value", "")
        if isinstance(constant, str) and MODULES & set(constant.split(".")):
            yield node.lineno, f"import of {constant}"


def dotted_name(node: ast.expr, names: dict[str, str]) -> str | None:
    """Return what `a.b.c` means, with `a` as it was imported; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        above = dotted_name(node.value, names)
        return None if above is None else f"{above}.{node.attr}"
    return None


def is_named(dotted: str) -> bool:
    """Return whether a dotted name, or one above it, is forbidden."""
    return any(dotted == name or dotted.startswith(f"{name}.") for name in NAMES)


def sources() -> list[Path]:
    """Return every Python file of the project but the tests."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = [Path(line) for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
    files = files or [path.relative_to(ROOT) for path in (ROOT / "dipole_ray").rglob("*.py")]
    return sorted(path for path in files if path.parts[0] != "tests" and (ROOT / path).is_file())


def test_no_file_of_ours_loads_pickles_or_runs_text() -> None:
    files = sources()
    assert {"dipole_ray", "benchmarks"} <= {path.parts[0] for path in files} and len(files) > 80
    wrong, used = [], set()
    for path in files:
        for line, what in forbidden((ROOT / path).read_text(encoding="utf-8")):
            if (str(path), what) in ALLOWED:
                used.add((str(path), what))
            else:
                wrong.append(f"{path}:{line}: {what}")
    assert not wrong, "\n".join(wrong)
    assert used == ALLOWED.keys(), f"allowed but not there any more: {ALLOWED.keys() - used}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import ray.cloudpickle as p",
        "from ray import cloudpickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import torch as t\nload = t.load",
        "from torch import load as read\nread(path)",
        "from torch.serialization import load",
        "import torch\ntorch.jit.load(path)",
        "import ray\nray.cloudpickle.loads(data)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "from numpy import load\nload(path)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "from yaml import UnsafeLoader",
        "eval(text)",
        "run = exec",
        "compile(text, name, 'exec')",
        "__import__('pickle')",
        "import importlib\nimportlib.import_module('dill')",
        "from importlib import import_module\nimport_module(name)",
        "import shelve, marshal",
        "import joblib",
        "import pandas as pd\npd.read_pickle(path)",
        "import mlflow\nmlflow.pytorch.load_model(uri)",
        "from ray import tune\ntune.Tuner.restore(path, trainable)",
        "getattr(torch, 'load')(path)",
        "def late():\n    import cloudpickle",
    ],
)
def test_each_way_is_seen(line: str) -> None:
    assert list(forbidden(line)), line


@pytest.mark.parametrize(
    "line",
    [
        "import safetensors.torch\nsafetensors.torch.load(data)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import json\njson.loads(text)",
        "import yaml\nyaml.safe_load(text)",
        "import re\nre.compile(pattern)",
        "import ast\nast.literal_eval(text)",
        "from dipole_ray.runs.config import load\nload(source)",
        "agent.load_state_dict(state)",
        "model.eval()",
    ],
)
def test_what_runs_nothing_is_let_through(line: str) -> None:
    assert not list(forbidden(line)), line
