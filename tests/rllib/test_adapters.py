"""A run of adapters on a given backbone: checkpoints hold PEFT's own folders, and whoever reads them finds the rest."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from dipole_ray import DIPOLE
from dipole_ray.agents.adapters import AdaptedFields, AdapterConfig
from dipole_ray.agents.backbones import LinearFields, save_backbone
from dipole_ray.agents.networks import Sizes
from dipole_ray.errors import CheckpointError
from dipole_ray.files.checkpoint import read_checkpoint, write_checkpoint
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
    file = backbone_file(tmp_path)
    algorithm = adapted(pendulum, file).build_algo()
    train_until(algorithm, lambda one: one.env_steps >= 60)
    path = Path(algorithm.save_to_path(tmp_path / "saved"))
    weights = algorithm.learner.policy.state
    assert not any("base_layer" in name for name in weights)  # the backbone is never published
    resumed = DIPOLE.from_checkpoint(path)
    for one in (algorithm, resumed):
        one.train()
    contents = [one.checkpoint_contents()[0] for one in (algorithm, resumed)]
    texts = [{name: one.pop(name) for name in list(one) if name.endswith(".json")} for one in contents]
    assert_same_tensors(*contents)
    assert texts[0] == texts[1] and len(texts[0]) == 2

    trained = load_policy(path)
    fields = trained.policy.networks.fields
    observations, x, t = torch.randn(4, 3), torch.randn(4, 1), torch.rand(4, 1)
    ours = fields(observations, x, t)
    for member, name in enumerate(("positive", "negative")):
        loaded = peft.PeftModel.from_pretrained(backbone(), path / "adapters" / name)
        assert torch.equal(loaded(observations, x, t)[0], ours[member])
    assert not torch.equal(*ours)
    for one in (algorithm, resumed):
        one.stop()


def test_workers_act_with_merged_weights_and_get_no_backbone(pendulum: Path, tmp_path: Path) -> None:
    algorithm = adapted(pendulum, backbone_file(tmp_path), workers=1, learners=1).build_algo()
    train_until(algorithm, lambda one: one.env_steps >= 120)
    found = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: (
            type(runner.module.policy.packed().networks.fields).__name__,
            {name: each.clone() for name, each in runner.module.policy.policy_state().items()},
        ),
        local_env_runner=False,
    )
    assert [name for name, _ in found] == ["PackedFields"]
    saved = algorithm.learner.agent_state()
    assert torch.equal(found[0][1]["fields.backbone_checksum"], saved["networks.fields.backbone_checksum"])
    algorithm.stop()


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
    import hashlib

    data = pickle.dumps(print)
    (path / f"{name}.safetensors").write_bytes(data)
    state["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del state["checksum"]
    state["checksum"] = hashlib.sha256(json.dumps(state, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a safetensors file"):
        read_checkpoint(path)
