"""One update does exactly what section 2 of the method says, and nothing when its numbers are not finite."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dipole_ray.agents import flow
from dipole_ray.agents.config import PRESETS
from dipole_ray.agents.data_parallel import DataParallel
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.data.dataset import write_dataset
from dipole_ray.errors import CheckpointError, ConfigError, NonFiniteError
from dipole_ray.replay.replay import Replay
from tests.agents.battery import (
    ACTION_DIM,
    OBSERVATION_DIM,
    ROWS,
    SCHEMA,
    assert_same,
    make_agent,
    make_batch,
    tiny_config,
)
from tests.synthetic import random_trajectory

COUNTERS_AND_NOISE = {"learner_steps", "skipped_updates", "consecutive_skips", "generator"}


@pytest.mark.parametrize("preset", PRESETS)
def test_target_critics_follow_by_polyak_averaging_after_the_step_and_those_of_other_code_before(preset: str) -> None:
    agent = make_agent(tiny_config(preset, tau=0.1))
    agent.update(make_batch(0))
    before, old = (
        {name: tensor.clone() for name, tensor in networks.state_dict().items()}
        for networks in (agent.networks.critic, agent.networks.target_critic)
    )
    agent.update(make_batch(1))
    followed = before if preset in ("ifql", "fql", "iql", "cfgrl") else agent.networks.critic.state_dict()
    for name, target in agent.networks.target_critic.state_dict().items():
        torch.testing.assert_close(target, 0.1 * followed[name] + 0.9 * old[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bootstrap", ["policy", "value"])
def test_masks_stop_the_bootstrap(bootstrap: str) -> None:
    agent = make_agent(tiny_config(bootstrap=bootstrap, reward_scale=2.0))
    batch = make_batch(0)
    batch["masks"][:] = 0
    target, _ = agent._critic_targets(agent._read_batch(batch))
    torch.testing.assert_close(target, 2.0 * torch.from_numpy(batch["rewards"]))


def test_value_bootstrap_takes_v_of_the_next_state_at_each_rows_own_horizon() -> None:
    agent = make_agent(tiny_config(bootstrap="value", reward_shift=1.0))
    batch = {name: torch.from_numpy(column) for name, column in make_batch(0).items()}
    v_next = agent.networks.value(batch["next_observations"])[0, :, 0]
    shift = (1 - batch["discounts"]) / (1 - 0.995)
    expected = batch["rewards"] + shift + batch["discounts"] * batch["masks"] * v_next
    torch.testing.assert_close(agent._critic_targets(batch)[0], expected.detach(), rtol=1e-5, atol=1e-5)


def test_policy_bootstrap_takes_the_mean_target_critic_at_a_positive_sample() -> None:
    agent = make_agent(tiny_config())
    batch = {name: torch.from_numpy(column) for name, column in make_batch(0).items()}
    noise = torch.Generator().manual_seed(0)
    noise.set_state(agent.generator.get_state())
    x = torch.randn(ROWS, 1, ACTION_DIM, generator=noise)[:, 0]
    with torch.no_grad():
        for k in range(10):
            x = x + agent.networks.fields(batch["next_observations"], x, torch.full((ROWS, 1), k / 10))[0] / 10
        pairs = torch.cat((batch["next_observations"], x.clamp(-1, 1)), dim=1)
        bootstrap = agent.networks.target_critic(pairs).mean(dim=0)[:, 0]
    expected = batch["rewards"] + batch["discounts"] * batch["masks"] * bootstrap
    torch.testing.assert_close(agent._critic_targets(batch)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bootstrap", ["policy", "value"])
def test_each_loss_reaches_only_its_own_network(bootstrap: str) -> None:
    agent = make_agent(tiny_config(train_bc=True, bootstrap=bootstrap))
    terms, _, _ = agent._losses(agent._read_batch(make_batch(0)), diagnostics=True)
    parameters = agent.networks.trained_parameters()
    for term, owner in {"critic": "critic", "value": "value", "actor": "fields"}.items():
        gradients = torch.autograd.grad(terms[term], list(parameters.values()), allow_unused=True, retain_graph=True)
        reached = {name.split(".")[0] for name, g in zip(parameters, gradients, strict=True) if g is not None}
        assert reached == {owner}, term


def test_each_field_learns_from_its_own_weights() -> None:
    """Sums of the stacked pass are the weighted regressions of Eq. 9 computed one by one."""
    agent = make_agent(tiny_config(train_bc=True, beta=2.0, shift=0.3))
    columns = make_batch(0)
    batch = agent._read_batch(columns)
    saved = agent.generator.get_state()
    terms, metrics, _ = agent._losses(batch, diagnostics=True)

    agent.generator.set_state(saved)
    q_target, q_data = agent._critic_targets(batch)
    noise = torch.randn(ROWS, ACTION_DIM, generator=agent.generator)
    t = torch.rand(ROWS, 1, generator=agent.generator)
    x, target = flow.path_point(noise, batch["actions"], t), batch["actions"] - noise
    with torch.no_grad():
        advantage = q_data.amin(dim=0) - agent.networks.value(batch["observations"])[0, :, 0]
        errors = (agent.networks.fields(batch["observations"], x, t) - target).square().mean(dim=-1)
        q = agent.networks.critic(torch.cat((batch["observations"], batch["actions"]), dim=1))[..., 0]
    weight = 1 / (1 + torch.exp(-(2.0 * advantage + 0.3)))
    expected = [(weight * errors[0]).mean(), ((1 - weight) * errors[1]).mean(), errors[2].mean()]
    found = [metrics[f"actor/loss_{name}"] for name in ("positive", "negative", "bc")]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    torch.testing.assert_close(terms["actor"].detach(), torch.stack(expected).sum())
    torch.testing.assert_close(metrics["critic/loss"], (q - q_target).square().mean())
    expectile = torch.where(advantage < 0, 0.1, 0.9)
    torch.testing.assert_close(metrics["value/loss"], (expectile * advantage.square()).mean())
    torch.testing.assert_close(metrics["actor/weight_q50"], weight.quantile(0.5))


def test_omega_zero_is_the_positive_policy_and_minus_one_the_negative() -> None:
    agent = make_agent(tiny_config(num_candidates=1))
    for step in range(3):
        agent.update(make_batch(step))
    observations = make_batch(9)["observations"]

    def act(chosen: DipoleAgent, omega: float) -> Tensor:
        return chosen.sample_actions(observations, omega=omega, generator=torch.Generator().manual_seed(0))

    swapped = make_agent(tiny_config(num_candidates=1))
    acting = agent.policy.policy_state()
    exchanged = {name: tensor.flip(0) if name.startswith("fields.") else tensor for name, tensor in acting.items()}
    swapped.policy.load_policy_state(exchanged)
    assert torch.equal(act(agent, 0.0), act(swapped, -1.0))
    assert torch.equal(act(agent, -1.0), act(swapped, 0.0))
    # The general formula next to both ends: the shortcut and the guided pass are one policy.
    torch.testing.assert_close(act(agent, 1e-9), act(agent, 0.0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(act(agent, -1 + 1e-9), act(agent, -1.0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(act(agent, 1.5), act(swapped, -2.5), rtol=1e-4, atol=1e-5)


def test_acting_keeps_the_candidate_with_the_largest_smallest_critic() -> None:
    agent = make_agent(tiny_config())
    observations = torch.from_numpy(make_batch(9)["observations"])
    chosen = agent.sample_actions(observations, num_candidates=6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(ROWS, 6, ACTION_DIM, generator=torch.Generator().manual_seed(0))
    candidates = agent.policy.from_noise(observations, noise, 0.0, "guided")
    for row in range(ROWS):
        pairs = torch.cat((observations[row].expand(6, -1), candidates[row]), dim=1)
        best = agent.networks.critic(pairs)[..., 0].amin(dim=0).argmax()
        torch.testing.assert_close(chosen[row], candidates[row, best])


def test_v_can_take_the_mean_of_critics_whose_least_gives_the_advantage_and_the_choice() -> None:
    """The authors' q_agg=mean, in `value_aggregation` and `advantage_aggregation`."""
    agents = {how: make_agent(tiny_config(value_aggregation=how)) for how in ("min", "mean")}
    both = make_agent(tiny_config(value_aggregation="mean", advantage_aggregation="min"))
    found = {how: agent.update(make_batch(0)) for how, agent in [*agents.items(), ("both", both)]}
    observations = make_batch(9)["observations"]
    assert found["both"]["value/loss"] == found["mean"]["value/loss"] != found["min"]["value/loss"]
    for name in ("actor/advantage_mean", "actor/loss_positive"):
        assert found["both"][name] == found["min"][name] != found["mean"][name]
    networks = agents["min"].networks.state_dict()
    for agent in (agents["mean"], both):
        agent.networks.load_state_dict(networks)
    acted = [agent.sample_actions(observations) for agent in (agents["min"], both, agents["mean"])]
    assert torch.equal(acted[0], acted[1]) and not torch.equal(acted[0], acted[2])


@pytest.mark.parametrize("preset", ["paper", "fql"])
@pytest.mark.parametrize("choice", ["online", "target"])
def test_candidates_of_the_bootstrap_are_chosen_by_the_critics_that_the_setting_names(preset: str, choice: str) -> None:
    agent = make_agent(tiny_config(preset, target_candidates=6, target_choice=choice))
    for step in range(3):
        agent.update(make_batch(step))
    observations = torch.from_numpy(make_batch(9)["next_observations"])
    drawn = torch.randn(ROWS, 6, ACTION_DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, _ = agent._policy_bootstrap(observations, torch.empty(0, OBSERVATION_DIM + ACTION_DIM), drawn)
        candidates = agent.policy.from_noise(observations, drawn, 0.0, "guided")
        pairs = torch.cat((observations[:, None].expand(-1, 6, -1), candidates), dim=-1).flatten(0, 1)
        online, target = (
            critic(pairs)[..., 0].view(2, ROWS, 6) for critic in (agent.networks.critic, agent.networks.target_critic)
        )
    picks = [q.amin(dim=0).argmax(dim=1, keepdim=True) for q in (online, target)]
    assert not torch.equal(*picks), "the test would not tell one from the other"
    expected = target.mean(dim=0).gather(1, picks[choice == "target"])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("column", ["rewards", "observations", "actions", "next_observations"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_non_finite_update_leaves_every_tensor_bitwise_unchanged(column: str, bad: float) -> None:
    agent = make_agent(tiny_config(advantage_normalization="running_std"))
    agent.update(make_batch(0))
    before = agent.state_dict()
    batch = make_batch(1)
    batch[column].reshape(ROWS, -1)[3, 0] = bad
    metrics = agent.update(batch)
    after = agent.state_dict()
    unchanged = before.keys() - COUNTERS_AND_NOISE
    assert_same({name: before[name] for name in unchanged}, {name: after[name] for name in unchanged})
    assert float(metrics["system/skipped_updates"]) == 1.0 and int(after["learner_steps"]) == 2
    agent.update(make_batch(2))
    assert agent.consecutive_skips == 0 and agent.skipped_updates == 1
    assert not torch.equal(before["networks.value.kernels.0"], agent.state_dict()["networks.value.kernels.0"])


def test_exploding_gradients_are_skipped_too() -> None:
    class Exploding(DataParallel):
        def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
            tensors[0].mul_(math.inf)

    agent = make_agent(tiny_config())
    agent.data_parallel = Exploding()
    before = agent.policy.policy_state()
    agent.update(make_batch(0))
    assert_same(before, agent.policy.policy_state())
    assert agent.skipped_updates == 1


def test_ten_skips_in_a_row_are_an_error_with_the_batch_saved(tmp_path: Path) -> None:
    agent = DipoleAgent(tiny_config(), SCHEMA, seed=0, failure_directory=tmp_path / "failures")
    batch = make_batch(1)
    batch["rewards"][5] = math.nan
    for _ in range(9):
        agent.update(batch)
    with pytest.raises(NonFiniteError, match=r"10 updates in a row.*nonfinite-batch-10\.safetensors"):
        agent.update(batch)
    saved = load_file(tmp_path / "failures" / "nonfinite-batch-10.safetensors")
    assert saved.keys() == batch.keys() | {"is_offline"}
    for name, column in batch.items():
        np.testing.assert_array_equal(saved[name].numpy(), column)


def test_same_seed_means_the_same_run_and_another_seed_another() -> None:
    first, second, other = make_agent(tiny_config(), 3), make_agent(tiny_config(), 3), make_agent(tiny_config(), 4)
    torch.manual_seed(0)
    for step in range(3):
        first.update(make_batch(step))
    torch.manual_seed(1)  # The global generator has no say.
    for step in range(3):
        second.update(make_batch(step), diagnostics=False)
        other.update(make_batch(step))
    assert_same(first.state_dict(), second.state_dict())
    assert not torch.equal(first.networks.value.kernels[0], other.networks.value.kernels[0])


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    agent = make_agent(tiny_config())
    before = agent.state_dict()
    state = make_agent(tiny_config(), 1).state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "networks.value.biases.0"}
    with pytest.raises(CheckpointError, match=r"missing networks\.value\.biases\.0"):
        agent.load_state_dict(missing)
    with pytest.raises(CheckpointError, match="unexpected extra"):
        agent.load_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has shape"):
        agent.load_state_dict(make_agent(tiny_config(hidden_dims=(8, 8))).state_dict())
    with pytest.raises(CheckpointError, match="missing generator"):
        agent.load_state_dict({name: tensor for name, tensor in state.items() if name != "generator"})
    with pytest.raises(CheckpointError, match="policy state: missing"):
        agent.policy.load_policy_state({})
    assert_same(before, agent.state_dict())


def test_state_is_a_copy() -> None:
    agent = make_agent(tiny_config())
    state, policy = agent.state_dict(), agent.policy.policy_state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    kept_policy = {name: tensor.clone() for name, tensor in policy.items()}
    agent.update(make_batch(0))
    assert_same(state, kept)
    assert_same(policy, kept_policy)


def test_a_generator_state_of_another_device_still_gives_reproducible_noise() -> None:
    state = {**make_agent(tiny_config()).state_dict(), "generator": torch.arange(16, dtype=torch.uint8)}
    first, second = make_agent(tiny_config(), 1), make_agent(tiny_config(), 2)
    first.load_state_dict(state)
    second.load_state_dict(state)
    assert_same(first.update(make_batch(0)), second.update(make_batch(0)))


def test_batches_that_do_not_fit_name_the_column() -> None:
    agent = make_agent(tiny_config(n_step=3))
    batch = make_batch(0)
    with pytest.raises(ConfigError, match="'discounts' is missing"):
        agent.update({name: column for name, column in batch.items() if name != "discounts"})
    with pytest.raises(ConfigError, match=r"'rewards' has shape \(32, 1\), expected \(32,\)"):
        agent.update({**batch, "rewards": batch["rewards"][:, None]})
    with pytest.raises(ConfigError, match="'actions' has shape"):
        agent.update({**batch, "actions": batch["actions"][:, :1]})


def test_no_rows_are_refused_in_a_sentence() -> None:
    agent = make_agent(tiny_config())
    with pytest.raises(ConfigError, match=r"observations have shape \(0, 5\); give \(B, 5\), .* at least one"):
        agent.sample_actions(make_batch(0, rows=0)["observations"])
    with pytest.raises(ConfigError, match="batch: it has no rows; give at least one"):
        agent.update(make_batch(0, rows=0))


@pytest.mark.parametrize("changes", [{"discount": 0.9}, {"n_step": 3}])
def test_a_replay_that_counts_otherwise_than_the_agent_is_refused(changes: dict[str, float], tmp_path: Path) -> None:
    rows = random_trajectory(np.random.default_rng(0), 50, OBSERVATION_DIM, ACTION_DIM)
    write_dataset(tmp_path / "data", [rows], SCHEMA, {})
    ((name, value),) = changes.items()
    replay = Replay(schema=SCHEMA, offline=[tmp_path / "data"], **changes)  # type: ignore[arg-type]
    make_agent(tiny_config(**changes)).update(replay.sample(8))
    agent = make_agent(tiny_config())
    remedy = rf"open it with Replay\({name}={getattr(agent.config, name)}\), or set agent.{name}={value}"
    with pytest.raises(ConfigError, match=f"the replay has {name}={value}, but agent.{name} is .*{remedy}"):
        agent.update(replay.sample(8))
    agent.update(Replay(schema=SCHEMA, offline=[tmp_path / "data"]).sample(8))  # both by default


@pytest.mark.parametrize(("shift", "field"), [(-13.0, "pi+"), (13.0, "pi-")])
def test_a_shift_that_stops_a_field_is_warned_of(shift: float, field: str) -> None:
    with pytest.warns(
        RuntimeWarning, match=rf"agent.shift: {shift} weighs the rows of {re.escape(field)} by about 2e-06"
    ):
        tiny_config(shift=shift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_config(shift=math.copysign(11.0, shift))


def test_policies_the_agent_does_not_have_are_refused() -> None:
    observations = make_batch(0)["observations"]
    with pytest.raises(ConfigError, match=r"agent\.train_bc=true"):
        make_agent(tiny_config()).sample_actions(observations, policy="bc")
    with pytest.raises(ConfigError, match="nothing to guide"):
        make_agent(tiny_config("exp")).sample_actions(observations, omega=1.0)
    with pytest.raises(ConfigError, match="leave omega out"):
        make_agent(tiny_config(train_bc=True)).sample_actions(observations, omega=1.0, policy="bc")
    with pytest.raises(ConfigError, match="num_candidates"):
        make_agent(tiny_config()).sample_actions(observations, num_candidates=0)
    with pytest.raises(ConfigError, match="choose guided or bc"):
        make_agent(tiny_config()).sample_actions(observations, policy="positive")


def test_an_added_bc_field_clones_offline_rows_alone() -> None:
    """Else the baseline of the online phase would clone the very policy it is compared with."""
    one, other = (make_agent(tiny_config(train_bc=True, bootstrap="value")) for _ in range(2))
    batch = make_batch(0)
    batch["is_offline"] = np.array([1.0, 0.0] * (ROWS // 2), np.float32)
    changed = {**batch, "actions": np.where(batch["is_offline"][:, None] > 0, batch["actions"], -batch["actions"])}
    one.update(batch)
    other.update(changed)
    index = one.config.fields.index("bc")
    for name, kernel in one.networks.fields.state_dict().items():
        assert torch.equal(kernel[index], other.networks.fields.state_dict()[name][index]), name
        assert not torch.equal(kernel[0], other.networks.fields.state_dict()[name][0]), name


def test_observations_of_another_environment_are_refused_with_their_shape() -> None:
    agent = make_agent(tiny_config())
    for wrong in (np.zeros((4, OBSERVATION_DIM + 1), np.float32), np.zeros(OBSERVATION_DIM, np.float32)):
        with pytest.raises(ConfigError, match=r"observations have shape"):
            agent.sample_actions(wrong)
