"""A run of adapters on a given backbone: checkpoints hold PEFT's own folders, and whoever reads them finds the rest."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
import safetensors.torch
import torch

from dipole_ray import DIPOLE
from dipole_ray.agents.adapter_files import without_texts
from dipole_ray.agents.adapters import AdaptedFields, AdapterConfig
from dipole_ray.agents.backbones import LinearFields, save_backbone
from dipole_ray.agents.networks import Sizes
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import copy_checkpoint, read_checkpoint, write_checkpoint
from dipole_ray.serving.policy import load_policy
from tests.rllib.small import assert_same_tensors, config, train_until

pytestmark = pytest.mark.usefixtures("cluster")

SIZES = Sizes(observation_dim=3, action_dim=1, hidden_dims=(16, 16), num_critics=2)


def backbone(seed: int = 0) -> LinearFields:
    return LinearFields(("bc",), SIZES, torch.Generator().manual_seed(seed))


def backbone_file(folder: Path, seed: int = 0) -> Path:
    """Write a backbone, as a run would have cloned it."""
    fields = AdaptedFields(("positive",), backbone(seed), AdapterConfig(rank=1), torch.Generator())
    save_backbone(fields, folder / f"backbone-{seed}.safetensors")
    return folder / f"backbone-{seed}.safetensors"


def adapted(dataset: Path, file: Path, **settings: Any) -> Any:
    return config(dataset, backbone={"path": str(file)}, adapters={"rank": 3}, **settings)


def test_a_run_of_adapters_is_exact_after_a_restart_and_plain_peft_loads_what_it_saved(
    pendulum: Path, tmp_path: Path
) -> None:
    import peft  # two seconds, for one worker of pytest alone

    file = backbone_file(tmp_path)
    algorithm = adapted(pendulum, file).build_algo()
    train_until(algorithm, lambda one: one.env_steps >= 60)
    path = Path(algorithm.save_to_path(tmp_path / "saved"))
    weights = algorithm.learner.policy.state
    assert not any("base_layer" in name for name in weights)  # the backbone is never published
    resumed = DIPOLE.from_checkpoint(path)
    for one in (algorithm, resumed):
        one.train()
    assert_same_tensors(tensors_of(algorithm), tensors_of(resumed))

    trained = load_policy(path)
    fields = trained.policy.networks.fields
    observations, x, t = torch.randn(4, 3), torch.randn(4, 1), torch.rand(4, 1)
    ours = fields.merged(("positive", "negative"))(observations, x, t)
    for member, name in enumerate(("positive", "negative")):
        loaded = peft.PeftModel.from_pretrained(backbone(), path / "adapters" / name)
        torch.testing.assert_close(loaded(observations, x, t)[0], ours[member])
    assert not torch.equal(*ours)
    for one in (algorithm, resumed):
        one.stop()


def cloned(dataset: Path, **settings: Any) -> Any:
    return config(dataset, adapters={"rank": 3}, clone_learner_steps=20, offline_learner_steps=24, **settings)


def backbone_of(algorithm: DIPOLE) -> dict[str, torch.Tensor]:
    """Return copies of the backbone of the learner, which is in this process."""
    found = algorithm.learner.learners[0].agent.networks.fields.backbone_state()
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def test_clone_offline_and_online_end_at_their_counts_and_go_on_exactly_from_any_checkpoint(
    pendulum: Path, tmp_path: Path
) -> None:
    algorithm = cloned(pendulum).build_algo()
    phases, steps, backbones, saved = [], [], [], []
    for number in range(6):
        phases.append(algorithm.phase)
        algorithm.train()
        steps.append((algorithm.learner_steps, algorithm.env_steps))
        backbones.append(backbone_of(algorithm))
        saved.append(Path(algorithm.save_to_path(tmp_path / str(number))))
        assert ("actor/loss_bc" in algorithm.group_metrics) == (phases[-1] == "clone")
    assert phases == ["clone", "clone", "offline", "offline", "online", "online"]
    assert steps[:4] == [(16, 0), (20, 0), (36, 0), (44, 0)] and steps[4][1] == 60
    assert not torch.equal(backbones[0]["layers.0.weight"], backbones[1]["layers.0.weight"])
    for later in backbones[2:]:
        assert_same_tensors({"": backbones[1]}, {"": later})
    files = [sorted(file.name for file in path.parent.glob("backbone-*")) for path in saved]
    assert files[0] == [] and len(files[1]) == 1 and files[1:] == [files[1]] * 5

    last = tensors_of(algorithm)
    for number in (0, 1, 2, 4):
        resumed = DIPOLE.from_checkpoint(saved[number])
        for _ in range(number + 1, 6):
            resumed.train()
        assert_same_tensors(tensors_of(resumed), last)
        resumed.stop()
    trained = load_policy(saved[5])
    assert_same_tensors({"": backbones[1]}, {"": trained.policy.networks.fields.backbone_state()})
    early = load_policy(saved[0]).policy
    observations = torch.randn(5, 3)
    ways = [
        early.sample_actions(observations, generator=torch.Generator().manual_seed(0), **how)
        for how in ({"omega": 0.0}, {"omega": -1.0}, {"policy": "bc"})
    ]
    assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])  # no adapter adds anything yet
    copy_checkpoint(saved[5], tmp_path / "copies")
    shutil.rmtree(tmp_path / "5")
    assert load_policy(tmp_path / "copies" / saved[5].name).learner_steps == algorithm.learner_steps
    (tmp_path / "copies" / files[2][0]).unlink()
    with pytest.raises(CheckpointError, match=r"backbone-[0-9a-f]{16}\.safetensors: missing"):
        load_policy(tmp_path / "copies" / saved[5].name)
    algorithm.stop()


def test_a_given_backbone_may_be_cloned_further_and_its_file_is_then_no_longer_needed(
    pendulum: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = backbone_file(tmp_path)
    algorithm = cloned(pendulum, backbone={"path": str(file)}).build_algo()
    assert "does not say what its observations were normalized with" in caplog.text
    given = safetensors.torch.load_file(file)
    assert_same_tensors({"": given}, {"": backbone_of(algorithm)})
    algorithm.train()
    early = Path(algorithm.save_to_path(tmp_path / "early"))
    train_until(algorithm, lambda one: one.phase == "online")
    assert not torch.equal(given["layers.0.weight"], backbone_of(algorithm)["layers.0.weight"])
    saved = Path(algorithm.save_to_path(tmp_path / "saved"))
    file.unlink()
    assert load_policy(early).learner_steps == 16
    loaded = load_policy(saved).policy.networks.fields
    assert_same_tensors({"": backbone_of(algorithm)}, {"": loaded.backbone_state()})
    algorithm.stop()


def tensors_of(algorithm: DIPOLE) -> dict[str, dict[str, torch.Tensor]]:
    return without_texts(algorithm.checkpoint_contents()[0])


@pytest.mark.slow
def test_workers_and_a_new_learner_get_the_backbone_that_the_run_cloned(pendulum: Path, tmp_path: Path) -> None:
    algorithm = cloned(pendulum, workers=1, learners=1).build_algo()
    assert algorithm.evaluate()  # in the clone phase, too
    train_until(algorithm, lambda one: one.env_steps >= 120)
    contents = tensors_of(algorithm)
    (name,) = (name for name in contents if name.startswith("../backbone-"))
    state = algorithm.learner.policy.state
    published = ray.get(state) if isinstance(state, ray.ObjectRef) else state
    assert not any("base_layer" in name or "backbone." in name for name in published)

    def backbones() -> list[dict[str, torch.Tensor]]:
        return algorithm.env_runner_group.foreach_env_runner(  # type: ignore[no-any-return]
            lambda runner: {n: t.clone() for n, t in runner.module.policy.networks.fields.backbone_state().items()},
            local_env_runner=False,
        )

    (found,) = backbones()
    acting = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: type(runner.module.policy.packed().networks.fields).__name__, local_env_runner=False
    )
    assert acting == ["PackedFields"]  # merged: stacked MLPs that compiled kernels evaluate
    assert_same_tensors({"": contents[name]}, {"": found})
    algorithm.save_to_path(tmp_path / "saved")
    ray.kill(algorithm.learner.learners[0])
    train_until(algorithm, lambda one: one.learner_restarts == 1 and one.env_steps >= 300)
    assert_same_tensors({"": contents[name]}, {"": tensors_of(algorithm)[name]})
    assert_same_tensors({"": found}, {"": backbones()[0]})
    algorithm.stop()


def test_a_backbone_that_nobody_trains_and_one_that_nobody_has_are_refused(pendulum: Path) -> None:
    with pytest.raises(ConfigError, match=r"the backbone below the adapters is untrained; set training.clone_learner"):
        config(pendulum, adapters={"rank": 3}).build_algo()
    with pytest.raises(ConfigError, match=r"no backbone to clone the dataset into; set agent.adapters.rank above 0"):
        config(pendulum, clone_learner_steps=3).build_algo()


def test_adapters_of_another_backbone_and_an_adapter_file_that_is_a_pickle_are_refused(
    pendulum: Path, tmp_path: Path
) -> None:
    files = [backbone_file(tmp_path, seed) for seed in (0, 1)]
    algorithm = adapted(pendulum, files[0], offline_learner_steps=8).build_algo()
    algorithm.train()
    path = Path(algorithm.save_to_path(tmp_path / "saved"))
    algorithm.stop()
    shutil.copy(files[1], files[0])
    with pytest.raises(CheckpointError, match=r"its adapters belong to the backbone [0-9a-f]{12}, and this agent's is"):
        load_policy(path)

    hostile = path / "adapters" / "positive" / "adapter_model.safetensors"
    hostile.write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: \d+ bytes, \d+ were written"):
        load_policy(path)
    state = json.loads((path / "state.json").read_text())
    assert set(state["files"]) >= {"agent", "adapters/positive/adapter_model", "adapters/negative/adapter_config.json"}


def test_a_checkpoint_whose_checksums_were_made_for_a_pickle_is_no_safetensors_file(tmp_path: Path) -> None:
    name = "adapters/positive/adapter_model"
    path = write_checkpoint(tmp_path, 1, {name: {"a": torch.zeros(1)}}, {})
    state = json.loads((path / "state.json").read_text())
    data = pickle.dumps(print)
    (path / f"{name}.safetensors").write_bytes(data)
    state["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del state["checksum"]
    state["checksum"] = hashlib.sha256(json.dumps(state, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a safetensors file"):
        read_checkpoint(path)
