"""Both policies are adapters on one frozen backbone: they learn, the backbone does not, and PEFT reads them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from dipole_ray.agents import dit
from dipole_ray.agents.adapters import AdaptedFields, AdapterConfig, checksum, with_backbone
from dipole_ray.agents.agent import make_agent, make_policy
from dipole_ray.agents.backbones import NETWORKS, BackboneConfig, LinearFields, make_fields, save_backbone
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.narrow import DTYPES
from dipole_ray.agents.networks import Sizes
from dipole_ray.columns import Schema
from dipole_ray.errors import CheckpointError, ConfigError
from tests.agents.battery import ACTION_DIM, OBSERVATION_DIM, SCHEMA, assert_same, make_batch, run_battery, tiny_config
from tests.agents.test_bandit import assert_greediness_pays, bandit_batch, bandit_config, expected_reward

NAMES = ("positive", "negative")
SIZES = Sizes(OBSERVATION_DIM, ACTION_DIM, (24, 24), 2)


def adapted(path: Path | None = None, network: str = "mlp", **changes: Any) -> AgentConfig:
    """Return the settings of a small agent whose policies are adapters."""
    backbone = BackboneConfig(network=network, path=None if path is None else str(path))
    return tiny_config(backbone=backbone, adapters=AdapterConfig(**{"rank": 4, **changes}))


def fields_of(agent: Any) -> AdaptedFields:
    fields = agent.networks.fields
    assert isinstance(fields, AdaptedFields)
    return fields


def draw(network: str = "mlp", seed: int = 0, **adapters: Any) -> AdaptedFields:
    """Return fields whose adapters, and the zeros of a transformer, are off their initial values."""
    generator = torch.Generator().manual_seed(seed)
    made = make_fields(
        BackboneConfig(network=network), AdapterConfig(**{"rank": 3, **adapters}), NAMES, SIZES, generator
    )
    assert isinstance(made, AdaptedFields)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    made.freeze()
    return made


def of_adapters(agent: Any) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in agent.networks.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("how", ["readable", "compiled", "captured"])
@pytest.mark.parametrize("network", ["mlp", "dit-tiny"])
def test_one_update_moves_both_adapters_and_not_one_bit_of_the_backbone(network: str, how: str) -> None:
    agent = make_agent(adapted(network=network), SCHEMA, seed=0)
    fields = fields_of(agent)
    if network != "mlp":
        fields.load_backbone({name: each + 0.05 for name, each in fields.backbone_state().items()})  # off its zeros
    backbone = {name: each.clone() for name, each in fields.backbone_state().items()}
    before, others = of_adapters(agent), {n: p.clone() for n, p in agent.networks.value.named_parameters()}
    if how == "compiled":
        assert agent.compile(2)
    if how == "captured":
        twice = {name: np.concatenate([column, column]) for name, column in make_batch(0).items()}
        CapturedUpdates([agent], 32, 2).update_on([twice])
    else:
        agent.update(make_batch(0))
        agent.update(make_batch(1))
    assert_same(backbone, fields.backbone_state())
    assert bytes(fields.backbone_checksum.tolist()) == checksum(backbone)
    after = of_adapters(agent)
    assert {name.split(".")[-2] for name in before} == set(NAMES)
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert not torch.equal(others["kernels.0"], agent.networks.value.kernels[0])
    held = {id(parameter) for parameter in agent.optimizer.param_groups[0]["params"]}
    assert not held & {id(each) for each in fields.backbone_state().values()}
    trained = agent.networks.trained_parameters()
    assert {name.split(".")[0] for name in trained} == {"critic", "value", "fields"}
    assert all(".lora_" in name for name in trained if name.startswith("fields."))


@pytest.mark.parametrize("network", ["mlp", "dit-tiny"])
def test_merged_weights_act_as_the_adapters_do_and_bc_is_the_backbone_alone(network: str) -> None:
    fields, generator = draw(network), torch.Generator().manual_seed(1)
    observations, x = torch.randn(4, OBSERVATION_DIM, generator=generator), torch.randn(4, 3, ACTION_DIM)
    t = torch.rand(4, 1, generator=generator)
    plain = NETWORKS[network](("bc",), SIZES, generator)
    plain.load_state_dict(fields.backbone_state())  # type: ignore[attr-defined]
    for chosen in (["positive"], ["negative", "positive"], ["bc"], ["bc", "negative"]):
        found = fields.velocity(fields.encode(observations, chosen), x, t, chosen)
        for n in range(3):
            every = {**dict(zip(NAMES, fields(observations, x[:, n], t), strict=True))}
            every["bc"] = plain(observations, x[:, n], t)[0]
            expected = torch.stack([every[name] for name in chosen])
            torch.testing.assert_close(found[:, :, n], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*fields(observations, x[:, 0], t), atol=1e-3)


def test_keys_and_values_of_the_context_are_computed_once_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, computed = [], dit.CrossAttention.keys_and_values

    def counting(self: Any, context: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(len(context))
        return computed(self, context)

    monkeypatch.setattr(dit.CrossAttention, "keys_and_values", counting)
    agent = make_agent(adapted(network="dit-tiny"), SCHEMA, seed=0)
    agent.sample_actions(make_batch(0, rows=7)["observations"], omega=1.0, num_candidates=9)
    assert rows == [7] * 4  # two adapters, two blocks, whatever the steps and candidates


def test_merged_weights_share_what_no_adapter_changes() -> None:
    fields = draw("dit-tiny", targets=("attention", "mlp"))
    merged: Any = fields.merged(["positive", "bc"])
    kept = {id(each) for each in fields.parameters()}
    shared = [{name for name, each in one.named_parameters() if id(each) in kept} for one in merged.networks]
    assert shared[1] == fields.backbone_state().keys()
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in shared[1] - shared[0]} == {
        *("qkv", "q", "k", "v", "proj", "fc1", "fc2")
    }


@pytest.mark.parametrize("network", ["mlp", "dit-tiny"])
def test_an_agent_of_adapters_fits_acts_saves_and_resumes(network: str) -> None:
    agent = make_agent(adapted(network=network), SCHEMA, seed=0)
    for step in range(2):
        agent.update(make_batch(step))
    saved = agent.state_dict()
    assert all(".lora_" in name for name in saved if ".fields.network" in name)
    observations = make_batch(9)["observations"]
    resumed, worker = (make(agent.config, SCHEMA, seed=0) for make in (make_agent, make_policy))
    resumed.load_state_dict(saved)
    worker.load_agent_state(saved)
    for omega, policy in ((0.0, "guided"), (2.0, "guided"), (None, "bc")):
        ways = [one.sample_actions(observations, omega=omega, policy=policy) for one in (agent, resumed, worker)]
        assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])
    for step in range(2, 4):
        assert_same(agent.update(make_batch(step)), resumed.update(make_batch(step)))
    assert_same(agent.state_dict(), resumed.state_dict())
    worker.load_policy_state(agent.policy.policy_state())
    acted = [
        one.sample_actions(observations, omega=1.0, generator=torch.Generator().manual_seed(1))
        for one in (agent, worker)
    ]
    assert torch.equal(*acted)


def test_adapters_on_a_cloned_backbone_learn_the_bandit_and_bc_stays_what_was_cloned() -> None:
    agent, rng = (
        make_agent(bandit_config(adapters=AdapterConfig(rank=8)), Schema(1, 1), seed=0),
        np.random.default_rng(0),
    )
    agent.clone(True)
    for _ in range(600):
        agent.update(bandit_batch(rng), diagnostics=False)
    agent.clone(False)
    before = expected_reward(agent, policy="bc")
    assert expected_reward(agent, omega=0.0) == expected_reward(agent, omega=-1.0) == before
    for _ in range(500):
        agent.update(bandit_batch(rng), diagnostics=False)
    assert expected_reward(agent, policy="bc") == before
    assert_greediness_pays(agent)


def test_the_merged_mlp_is_what_the_compiled_kernels_act_with() -> None:
    agent = make_agent(adapted(), SCHEMA, seed=0)
    assert isinstance(fields_of(agent).merged(["positive"]), StackedFields)
    assert type(agent.policy.packed().networks.fields).__name__ == "PackedFields"


def test_adapters_of_another_backbone_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    saved = make_agent(adapted(), SCHEMA, seed=0).state_dict()
    other = make_agent(adapted(), SCHEMA, seed=1)
    before = other.state_dict()
    with pytest.raises(CheckpointError, match=r"belong to the backbone [0-9a-f]{12}, and this agent's is [0-9a-f]{12}"):
        other.load_state_dict(saved)
    with pytest.raises(CheckpointError, match="its adapters belong to the backbone"):
        other.policy.load_policy_state(
            {n: t for n, t in make_agent(adapted(), SCHEMA, seed=0).policy.policy_state().items()}
        )
    assert_same(before, other.state_dict())


def test_a_backbone_file_is_what_the_adapters_lie_on(tmp_path: Path) -> None:
    fields, file = draw(), tmp_path / "backbone.safetensors"
    save_backbone(fields, file)
    agent = make_agent(adapted(file), SCHEMA, seed=3)
    assert_same(fields.backbone_state(), fields_of(agent).backbone_state())
    assert torch.equal(fields.backbone_checksum, fields_of(agent).backbone_checksum)


def test_what_is_no_backbone_of_this_environment_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    wide = LinearFields(("bc",), Sizes(9, ACTION_DIM, (24, 24), 2), torch.Generator())
    fits = rf"does not fit {OBSERVATION_DIM} observations, {ACTION_DIM} actions and network mlp"
    save_backbone(AdaptedFields(NAMES, wide, AdapterConfig(rank=1), torch.Generator()), file)
    with pytest.raises(ConfigError, match=rf"{fits}.*layers\.0\.weight has shape \(24, 12\), expected \(24, 8\)"):
        make_agent(adapted(file), SCHEMA, seed=0)
    torch.save(wide.state_dict(), file)
    with pytest.raises(ConfigError, match="holds a pickle, which could run anything; write it anew with safetensors"):
        make_agent(adapted(file), SCHEMA, seed=0)
    file.write_bytes(b"\0" * 100)
    with pytest.raises(ConfigError, match="is no safetensors file"):
        make_agent(adapted(file), SCHEMA, seed=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        make_agent(adapted(tmp_path / "nowhere"), SCHEMA, seed=0)


def test_targets_mean_kinds_or_names_and_those_that_match_nothing_name_the_nearest() -> None:
    def targets(*names: str) -> set[str]:
        fields = draw("dit-tiny", targets=names)
        return {
            name.removesuffix(".lora_A.positive")
            for name, _ in fields.network.named_modules()
            if name.endswith("lora_A.positive")
        }  # type: ignore[attr-defined]

    block = {"attention.qkv", "attention.proj", "cross.q", "cross.k", "cross.v", "cross.proj"}
    assert targets("attention") == {f"blocks.{i}.{name}" for i in range(2) for name in block}
    assert targets("fc1") == {f"blocks.{i}.{name}.fc1" for i in range(2) for name in ("mlp", "cross_mlp")}
    assert targets("blocks.1.cross.k", "head") == {"blocks.1.cross.k", "head"}
    assert len(targets("linear")) == 2 * 11 + 8
    with pytest.raises(ConfigError, match=r"found 'qvk', but no linear layer of DiTFields .* the nearest are qkv"):
        targets("qvk")
    with pytest.raises(ConfigError, match="found 'attention', but no linear layer of LinearFields"):
        draw(targets=("attention",))


def test_settings_that_nothing_would_read_are_refused() -> None:
    for make, sentence in (
        (partial(AdapterConfig, alpha=8.0), "there are no adapters; set agent.adapters.alpha=16.0 or"),
        (partial(AdapterConfig, targets=("mlp",)), r"set agent.adapters.targets=\[linear\] or"),
        (partial(AdapterConfig, rank=-1), "give a whole number of at least 0"),
        (partial(BackboneConfig, network="dit-huge"), "choose mlp, dit-tiny, dit-small, dit-base, or module:factory"),
        (partial(tiny_config, backbone=BackboneConfig(path="b")), "without adapters no field lies on a backbone"),
        (partial(BackboneConfig, dtype="bf16"), "found 'bf16'; choose float32 or bfloat16"),
        (
            partial(tiny_config, backbone=BackboneConfig(dtype="bfloat16")),
            "without adapters no network is frozen; set agent.backbone.dtype=float32 or agent.adapters.rank above 0",
        ),
        (partial(tiny_config, "bc", adapters=AdapterConfig(rank=1)), "weight_scheme 'bc' trains a field of its own"),
        (
            partial(tiny_config, "fql", adapters=AdapterConfig(rank=1)),
            r"agent\.adapters\.rank: found 1, but algorithm 'fql' does not",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            make()


def test_full_networks_of_a_transformer_keep_every_promise() -> None:
    run_battery(tiny_config(backbone=BackboneConfig(network="dit-tiny")))


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "large-policies.md").read_text()


def test_a_network_from_a_file_of_ones_own_is_a_field_or_a_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = re.findall(r"`my_network.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_network.py").write_text(f"{program}\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    run_battery(tiny_config(backbone=BackboneConfig(network="my_network:Mine")))
    agent = make_agent(adapted(network="my_network:Mine", targets=("state", "out")), SCHEMA, seed=0)
    before = of_adapters(agent)
    agent.update(make_batch(0))
    agent.update(make_batch(1))
    assert [name for name, each in of_adapters(agent).items() if torch.equal(before[name], each)] == []
    assert {name.split(".")[2] for name in before} == {"state", "out"}
    for network, sentence in {
        "my_network:NUMBER": "'my_network' has no function 'NUMBER'",
        "my_network:Nobody": "'my_network' has no function 'Nobody'",
        "no_network:Mine": "cannot import 'no_network'",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            make_agent(adapted(network=network), SCHEMA, seed=0)


def test_who_only_acts_with_adapters_imports_no_peft_and_acts_as_the_learner_does(tmp_path: Path) -> None:
    agent = make_agent(adapted(targets=("linear",)), SCHEMA, seed=0)
    for step in range(3):
        agent.update(make_batch(step))
    safetensors.torch.save_file(agent.policy.policy_state(), tmp_path / "state.safetensors")
    np.save(tmp_path / "observations.npy", make_batch(9)["observations"])
    program = f"""
import sys, numpy as np, safetensors.torch
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import make_policy
from tests.agents.battery import SCHEMA
from tests.agents.test_adapters import adapted
sys.modules.pop("peft", None)
policy = make_policy(adapted(targets=("linear",)), SCHEMA, seed=0)
policy.load_policy_state(safetensors.torch.load_file({str(tmp_path / "state.safetensors")!r}))
for name, omega in (("guided", 2.0), ("bc", None)):
    actions = policy.sample_actions(np.load({str(tmp_path / "observations.npy")!r}), omega=omega, policy=name)
    np.save({str(tmp_path)!r} + f"/{{name}}.npy", actions.numpy())
print(sorted({{"peft", "transformers", "accelerate"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    policy = make_agent(agent.config, SCHEMA, seed=0).policy
    policy.load_policy_state(agent.policy.policy_state())
    for name, omega in (("guided", 2.0), ("bc", None)):
        expected = policy.sample_actions(make_batch(9)["observations"], omega=omega, policy=name).numpy()
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)


@pytest.mark.parametrize("network", ["mlp", "dit-tiny"])
def test_a_backbone_in_bfloat16_below_float32_adapters_learns_and_acts_as_one_in_float32_within_its_rounding(
    tmp_path: Path, network: str
) -> None:
    config, agents = adapted(network=network), []
    noise = torch.Generator().manual_seed(2)
    trained = make_fields(config.backbone, config.adapters, NAMES, SIZES, torch.Generator().manual_seed(1))
    assert isinstance(trained, AdaptedFields)
    moved = {
        name: each + 0.05 * torch.randn(each.shape, generator=noise) for name, each in trained.backbone_state().items()
    }
    trained.load_backbone(moved)  # off the zeros of a fresh transformer
    save_backbone(trained, tmp_path / "backbone.safetensors")
    for dtype in DTYPES:
        backbone = replace(config.backbone, dtype=dtype, path=str(tmp_path / "backbone.safetensors"))
        agents.append(make_agent(replace(config, backbone=backbone), SCHEMA, seed=0))
    narrow = agents[1]
    kept = fields_of(narrow).backbone_state()
    assert {each.dtype for name, each in kept.items() if name.endswith("weight")} == {torch.bfloat16}
    assert {each.dtype for each in of_adapters(narrow).values()} == {torch.float32}
    before = {name: each.clone() for name, each in kept.items()}
    for step in range(5):
        ours, theirs = (agent.update(make_batch(step)) for agent in agents)
        for name in ("actor/loss_positive", "actor/loss_negative"):
            assert float(theirs[name]) == pytest.approx(float(ours[name]), rel=0.01)
    assert_same(before, fields_of(narrow).backbone_state())
    moved_by = [torch.cat([each.detach().flatten() for each in of_adapters(agent).values()]) for agent in agents]
    assert float(torch.nn.functional.cosine_similarity(*moved_by, dim=0)) > 0.99
    observations = make_batch(9)["observations"]
    for policy, omega in (("guided", 1.0), ("bc", None)):
        ours, theirs = (
            agent.sample_actions(
                observations, omega=omega, policy=policy, num_candidates=1, generator=torch.Generator().manual_seed(0)
            )
            for agent in agents
        )
        assert 0 < float((ours - theirs).abs().max()) < 0.03
    # A small adapter is not rounded away: what it is merged into has the digits of float32.
    merged: Any = fields_of(narrow).merged(["positive"])
    weights = [each for name, each in merged.named_parameters() if "kernels" in name or name.endswith("qkv.weight")]
    assert {each.dtype for each in weights} == {torch.float32}


def test_a_backbone_to_be_kept_in_bfloat16_is_cloned_in_float32_and_rounded_when_it_freezes() -> None:
    config = adapted()
    agent = make_agent(replace(config, backbone=replace(config.backbone, dtype="bfloat16")), SCHEMA, seed=0)
    agent.clone(True)
    worker = make_policy(agent.config, SCHEMA, seed=0)
    for step in range(2):
        agent.update(make_batch(step))
    worker.load_policy_state(agent.policy.policy_state())
    cloned = {name: each.clone() for name, each in fields_of(agent).backbone_state().items()}
    observations = make_batch(9)["observations"]
    assert_alike = partial(_assert_acts_alike, agent, worker, observations)
    assert_alike()
    assert {each.dtype for each in cloned.values()} == {torch.float32}
    agent.clone(False)
    frozen = fields_of(agent).backbone_state()
    weights = {name for name in cloned if name.endswith("weight")}
    assert_same({name: each.to(torch.bfloat16) if name in weights else each for name, each in cloned.items()}, frozen)
    worker.load_policy_state(with_backbone(agent.policy.policy_state(), frozen, "fields."))
    agent.update(make_batch(3))
    worker.load_policy_state(agent.policy.policy_state())
    assert_alike()


def _assert_acts_alike(agent: Any, worker: Any, observations: np.ndarray) -> None:
    for policy, omega in (("guided", 1.0), ("bc", None)):
        ours, theirs = (
            one.sample_actions(observations, omega=omega, policy=policy, generator=torch.Generator().manual_seed(1))
            for one in (agent, worker)
        )
        assert torch.equal(ours, theirs)


def test_who_has_no_adapters_imports_neither_peft_nor_transformers() -> None:
    program = """
import sys
from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.columns import Schema
from dipole_ray.cli import main
make_agent(AgentConfig(hidden_dims=(8,)), Schema(3, 1), seed=0)
try:
    main(["train", "--help"])
except SystemExit:
    pass
print(sorted({"peft", "transformers", "accelerate"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
