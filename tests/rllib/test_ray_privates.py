"""Private names of Ray stand in two files, and a Ray that lacks one of them is named before a run stumbles over it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.tune import Trainable
from ray.tune.schedulers import ASHAScheduler

import dipole_ray
from dipole_ray.cluster import start_ray
from dipole_ray.rllib import core_privates, privates
from dipole_ray.stopping import keeping_handlers
from tests.rllib.echo import Echo
from tests.rllib.small import config

PACKAGE = Path(dipole_ray.__file__).parent
HOMES = {Path(core_privates.__file__), Path(privates.__file__)}
RAYS = (Algorithm, AlgorithmConfig, LearnerGroup, RLModule, EnvRunner, EnvRunnerGroup, FaultTolerantActorManager)
HOOKS = {"_forward", "_forward_exploration"}
"""Methods that RLlib's documentation asks a module to define."""
BROKEN = f"Ray {ray.__version__} broke dipole_ray.rllib.privates"
CORE = f"Ray {ray.__version__} broke dipole_ray.rllib.core_privates"


@cache
def private_names(classes: tuple[type, ...]) -> set[str]:
    """Return the private methods and attributes that Ray's classes define, inherited ones included."""
    found: set[str] = set()
    for kind in {base for each in classes for base in each.__mro__ if base.__module__.startswith("ray.")}:
        found |= set(re.findall(r"(?:def |self\.)(_[a-z]\w*)", inspect.getsource(kind)))
    return found


def used_of_others(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of what a file takes that is private to Ray or to an object that is not its own."""
    names = private_names((*RAYS, Trainable, ActorHandle))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                path = f"{module}.{alias.name}".strip(".").split(".")
                if path[0] == "ray" and (any(part.startswith("_") for part in path) or "experimental" in path):
                    yield node.lineno, ".".join(path)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and (node.attr in names or owner.split(".")[0] == "ray"):
                yield node.lineno, f"{owner}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg is not None and node.arg.startswith("_"):
            yield node.value.lineno, f"{node.arg}="


def classes_on_ray() -> Iterator[type]:
    """Yield the package's classes that derive from one of Ray's."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "dipole_ray."):
        if module.name.split(".")[1] in ("rllib", "sweep") and module.name != privates.__name__:
            for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if kind.__module__ == module.name and any(base.__module__.startswith("ray.") for base in kind.__mro__):
                    yield kind


def test_no_other_file_uses_a_private_name_of_ray() -> None:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file not in HOMES:
            used = used_of_others(ast.parse(file.read_text()))
            found += [f"{file.relative_to(PACKAGE)}:{line} uses {name}" for line, name in used]
    assert not found, "\n".join(found)


def test_no_class_of_ours_uses_or_hides_a_private_name_of_its_base() -> None:
    found = []
    for kind in classes_on_ray():
        own = set(re.findall(r"(?:def |self\.|super\(\)\.)(_[a-z]\w*)", textwrap.dedent(inspect.getsource(kind))))
        rays = private_names((kind,)) - HOOKS
        found += [f"{kind.__module__}.{kind.__name__}: {name}" for name in sorted(own & rays)]
    assert not found, "\n".join(found)


@pytest.mark.usefixtures("cluster")
def test_free_resources_are_told_by_node() -> None:
    here = ray.get_runtime_context().get_node_id()
    assert core_privates.free_resources_by_node()[here]["CPU"] > 0, f"{CORE}.free_resources_by_node"


@pytest.mark.usefixtures("cluster")
def test_a_preferred_node_that_is_full_or_unknown_is_no_obstacle() -> None:
    here = ray.get_runtime_context().get_node_id()
    for node in (here, "1" * len(here)):
        actor = ray.remote(num_cpus=0, scheduling_strategy=core_privates.prefer_node(node))(Echo).remote()
        assert ray.get(actor.node.remote(), timeout=60) == here, f"{CORE}.prefer_node"


@pytest.mark.usefixtures("cluster")
def test_an_actor_is_known_by_the_id_that_it_gives_itself_and_its_beats_are_read() -> None:
    actor = ray.remote(num_cpus=0)(Echo).remote()
    own = ray.get(actor.apply.remote(lambda actor: ray.get_runtime_context().get_actor_id()))
    assert core_privates.actor_id(actor) == own, f"{CORE}.actor_id"
    assert core_privates.read_beat(own) is None, f"{CORE}.read_beat"
    core_privates.write_beat(own, "1")
    core_privates.write_beat(own, "2")
    assert core_privates.read_beat(own) == b"2", f"{CORE}.write_beat"


def test_an_algorithms_folder_is_elsewhere_where_home_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", "/dev/null/nobody/ray_results")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with privates.writable_results():
        assert Path(Trainable().logdir).parent == tmp_path / "ray_results", f"{BROKEN}.writable_results"


@pytest.mark.usefixtures("cluster")
def test_requests_to_rollout_workers_are_seen_in_flight() -> None:
    manager = FaultTolerantActorManager([ray.remote(num_cpus=0)(Echo).remote()])
    manager.foreach_actor_async(lambda actor: actor.ping(), tag="probe")
    assert list(privates.requests_in_flight(manager).values()) == [("probe", 0)], f"{BROKEN}.requests_in_flight"


@pytest.mark.usefixtures("cluster")
def test_setup_takes_our_worker_group_and_learners(pendulum: Path) -> None:
    algorithm = config(pendulum, workers=1).build_algo()
    try:
        group, learner = algorithm.env_runner_group, algorithm.learner.learners[0]
        assert isinstance(group, privates.PlacedEnvRunnerGroup), f"{BROKEN}.rllibs_setup"
        assert group.nodes == [ray.get_runtime_context().get_node_id()], f"{BROKEN}.PlacedEnvRunnerGroup"
        assert privates.manager_of(group).num_actors() == 1, f"{BROKEN}.manager_of"
        assert algorithm.offline_data.learner_handles == [learner], f"{BROKEN}.give_learners"
        algorithm.train()
        assert "synch_env_connectors" not in str(algorithm.metrics.peek("timers", default={})), (
            f"{BROKEN}.sync_no_states"
        )
    finally:
        algorithm.stop()


def test_configs_tell_their_state_and_their_keys() -> None:
    made = config(None)
    assert not privates.is_frozen(made), f"{BROKEN}.is_frozen"
    made.freeze()
    assert privates.is_frozen(made), f"{BROKEN}.is_frozen"
    assert privates.translated(made, "input") == "input_", f"{BROKEN}.translated"


def test_a_name_of_tunes_registry_is_known() -> None:
    tune.register_env("known", lambda _: None)
    known = [privates.is_registered_with_tune(name) for name in ("known", "unknown", "Pendulum-v1")]
    assert known == [True, False, False], f"{BROKEN}.is_registered_with_tune"


def test_asha_keeps_results_by_rung() -> None:
    scheduler = ASHAScheduler("rung", metric="score", mode="max", max_t=4, grace_period=1, reduction_factor=2)
    assert sorted(milestone for milestone, _ in privates.asha_rungs(scheduler)) == [1, 2, 4], f"{BROKEN}.asha_rungs"


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_a_token_admits_strangers() -> None:
    assert core_privates.admits_strangers(ray.get_runtime_context().gcs_address), f"{CORE}.admits_strangers"


@pytest.mark.usefixtures("no_ray")
def test_a_ray_whose_processes_hear_no_signal_ends_without_waiting_for_each() -> None:
    with keeping_handlers():
        start_ray(include_dashboard=False, log_to_driver=False)
    node = ray._private.worker._global_node
    processes = [info.process for kind in node.all_processes.values() for info in kind]
    with patch.object(subprocess.Popen, "terminate") as asked:  # what `ray.shutdown` does first with each of them
        core_privates.stop_ray()
    assert not ray.is_initialized() and all(process.poll() is not None for process in processes), f"{CORE}.stop_ray"
    assert asked.call_count <= 1 < len(processes), f"{CORE}.stop_ray"
