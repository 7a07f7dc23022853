"""Updates by compiled loops equal the readable ones: losses, gradients, a hundred updates, skips and checkpoints."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.agents.agent import Agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.fields import StackedFields
from dipole_ray.errors import ConfigError, NonFiniteError
from tests.agents import battery
from tests.agents.battery import ROWS, assert_same, in_double, make_agent, make_batch, tiny_config
from tests.agents.test_captured import AGENTS, assert_close, named, spoilt

pytest.importorskip("numba")

from dipole_ray.agents import compiling, passes, precision, tiles
from dipole_ray.agents.halves import multiply_halves, workspace_of_halves
from dipole_ray.agents.products import multiply, workspace

needs_pairs = pytest.mark.skipif(not tiles.HAS_PAIRS, reason="the CPU lacks AVX512-BF16")

SETTINGS = [
    *AGENTS,
    {"preset": "ifql", "target_update": "before", "num_critics": 3, "value_aggregation": "mean_minus_std"},
    {"preset": "cfgrl", "hidden_dims": (40,)},
]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a number of threads, to which the smallest pass is dealt."""
    monkeypatch.setattr(passes, "_MIN_WORK", 1)
    return int(request.param)


def pair(settings: dict[str, Any], threads: int = 1, matmul_precision: str = "float32") -> tuple[Agent, Agent]:
    """Return an agent and its compiled twin."""
    agent, twin = (make_agent(tiny_config(**settings), device="cpu") for _ in range(2))
    assert twin.compile(threads, matmul_precision) and not agent.steps.is_compiled
    return agent, twin


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_a_hundred_updates_end_where_readable_ones_do(settings: dict[str, Any], threads: int) -> None:
    """Some are skipped, and counted alike; the metrics of every step are the same."""
    agent, twin = pair(settings, threads)
    for step in range(100):
        batch = spoilt(make_batch(step)) if step in (3, *range(20, 29)) else make_batch(step)
        expected, found = agent.update(batch), twin.update(batch)
        assert found.keys() == expected.keys()
        if twin.consecutive_skips == 0:
            for name, value in found.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=f"{name} at {step}")
    assert twin.skipped_updates == agent.skipped_updates == 10
    assert_close(agent, twin)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS[:-1], ids=named)
def test_losses_and_gradients_are_equal_in_float64(
    settings: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, twin = (make_agent(tiny_config(**settings), device="cpu") for _ in range(2))
    for each in (agent, twin):
        in_double(each, monkeypatch)
    assert twin.compile(threads)
    for step in range(3):
        expected, found = agent.update(make_batch(step)), twin.update(make_batch(step))
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-6 if "norm" in name else 1e-10), name
        for (name, parameter), own in zip(agent.networks.named_parameters(), twin.networks.parameters(), strict=True):
            if parameter.requires_grad:
                torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("settings", [{"preset": "small", "train_bc": True}, {"preset": "fql"}], ids=named)
def test_updates_that_are_not_finite_change_no_tensor(settings: dict[str, Any], threads: int, tmp_path: Path) -> None:
    _, twin = pair(settings, threads)
    twin.update(make_batch(0))
    twin.failure_directory = tmp_path
    before, batch = twin.state_dict(), make_batch(1)
    for name in ("rewards", "observations", "next_observations"):
        for value in (np.nan, np.inf, 1e38):
            column = batch[name].copy()
            column[3] = value
            twin.update({**batch, name: column})
    kept = before.keys() - {"learner_steps", "skipped_updates", "consecutive_skips", "generator"}
    after = twin.state_dict()
    assert_same({name: before[name] for name in kept}, {name: after[name] for name in kept})
    with pytest.raises(NonFiniteError, match="in 10 updates in a row"):
        twin.update(spoilt(batch))


@pytest.mark.parametrize("settings", [{"preset": "small"}, {"preset": "paper"}, {"preset": "iql"}], ids=named)
def test_a_checkpoint_goes_on_bitwise_and_on_either_way(settings: dict[str, Any], threads: int) -> None:
    agent, twin = pair(settings, threads)
    before = agent.state_dict()
    assert_same(before, twin.state_dict())
    for step in range(3):
        twin.update(make_batch(step))
    resumed, readable = make_agent(twin.config, seed=9, device="cpu"), make_agent(twin.config, seed=9, device="cpu")
    assert resumed.compile(threads)
    resumed.update(make_batch(50))  # memory that was used before leaves no trace
    saved = twin.state_dict()
    for other in (resumed, readable):
        other.load_state_dict(saved)
        assert_same(saved, other.state_dict())
    for step in range(3, 6):
        assert_same(twin.update(make_batch(step)), resumed.update(make_batch(step)))
        readable.update(make_batch(step))
    assert_same(twin.state_dict(), resumed.state_dict())
    assert_close(readable, twin)
    twin.load_state_dict(readable.state_dict())
    assert_same(readable.state_dict(), twin.state_dict())


@pytest.mark.parametrize("preset", ["paper", "fql"])
def test_a_compiled_agent_keeps_the_promises_of_every_agent(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(config: AgentConfig, **options: Any) -> Any:
        agent = make_agent(config, **options, device="cpu")
        assert agent.compile()
        return agent

    monkeypatch.setattr(battery, "make_agent", compiled)
    battery.run_battery(tiny_config(preset))


def test_without_numba_updates_are_the_readable_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent, other = (make_agent(tiny_config("small"), device="cpu") for _ in range(2))
    for name in [name for name in sys.modules if name.startswith("dipole_ray.agents.")]:
        if name.rsplit(".", 1)[1] in ("compiled", "compiling", "loops", "passes", "products"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.WARNING):
        assert not other.compile()
    assert "updates run uncompiled" in caplog.text and "numba" in caplog.text
    for step in range(3):
        assert_same(agent.update(make_batch(step)), other.update(make_batch(step)))
    assert_same(agent.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (13, 300, 33), (50, 17, 64), (12, 64, 1), (7, 1, 40)])
def test_products_equal_those_of_numpy(shape: tuple[int, int, int], kind: type) -> None:
    """Whatever lies beyond whole tiles and panels; each of the two may lie transposed, and the product may be added."""
    rows, depth, columns = shape
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(kind) for size in ((rows, depth), (depth, columns)))
    start = rng.normal(size=(rows, columns)).astype(kind)
    for a_transposed in (False, True):
        for b_transposed in (False, True):
            for adds in (False, True):
                left = np.ascontiguousarray(a.T) if a_transposed else a
                right = np.ascontiguousarray(b.T) if b_transposed else b
                found = start.copy()
                multiply(left, a_transposed, right, b_transposed, found, adds, workspace(left))
                expected = a.astype(np.float64) @ b + (start if adds else 0)
                tolerance = 40 * np.finfo(kind).eps * np.sqrt(depth)
                np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


SHAPES = [(1, 1, 1), (3, 5, 2), (13, 300, 33), (50, 17, 64), (12, 64, 1), (7, 1, 40), (37, 601, 150)]


@needs_pairs
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_halves_equal_those_of_numbers_that_torch_rounded(shape: tuple[int, int, int]) -> None:
    """Summed up in float32; nothing is rounded where a product has one term or one column, and no NaN is lost."""
    rows, depth, columns = shape
    random = torch.Generator().manual_seed(0)
    a, b, start = (torch.randn(size, generator=random) for size in ((rows, depth), (depth, columns), (rows, columns)))
    rounds = depth > 1 and columns > 1
    factors = [x.bfloat16().double() if rounds else x.double() for x in (a, b)]
    for a_transposed in (False, True):
        for b_transposed in (False, True):
            for adds in (False, True):
                left = (a.T if a_transposed else a).contiguous().numpy()
                right = (b.T if b_transposed else b).contiguous().numpy()
                found, room = start.clone(), workspace_of_halves(rows)
                multiply_halves(left, a_transposed, right, b_transposed, found.numpy(), adds, room)
                expected = factors[0] @ factors[1] + (start if adds else 0)
                torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * depth)
    for worst in (np.nan, np.inf, np.uint32(0x7FFFFFFF).view(np.float32)):
        left = a.numpy().copy()
        left[-1, -1] = worst
        multiply_halves(left, False, b.numpy(), False, found.numpy(), False, workspace_of_halves(rows))
        assert not torch.isfinite(found[-1]).any()


class Rounded(torch.autograd.Function):
    """`baddbmm` whose factors are rounded to bfloat16, as are those of its gradients' products; not of one term."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(a, b)
        return bias + Rounded.product(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        product = Rounded.product
        return gradient.sum(dim=1, keepdim=True), product(gradient, b.mT), product(a.mT, gradient)

    @staticmethod
    def product(a: Tensor, b: Tensor) -> Tensor:
        rounds = a.shape[2] > 1 and b.shape[2] > 1
        return torch.bmm(*(x.bfloat16().float() if rounds else x for x in (a, b)))


class WholeInputs(StackedFields):
    """Fields whose first layer reads observation, action and time at once, as the compiled one does."""

    def encode(self, observations: Tensor, fields: Sequence[str]) -> Tensor:
        return observations

    def velocity(self, context: Tensor, x: Tensor, t: float | Tensor, fields: Sequence[str]) -> Tensor:
        assert isinstance(t, float)
        states, flat = context.repeat_interleave(x.shape[1], dim=0), x.flatten(0, 1)
        inputs = torch.cat((states, flat, torch.full_like(flat[:, :1], t)), dim=1)
        return self.mlp.forward(inputs, self._members(fields)).unflatten(1, x.shape[:2])


@needs_pairs
@pytest.mark.parametrize("settings", [SETTINGS[0], pytest.param(SETTINGS[-1], marks=pytest.mark.slow)], ids=named)
def test_updates_in_bf16_round_the_factors_of_products_and_nothing_else(
    settings: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are those of torch with rounded factors, from which float32's differ a hundred times as much."""
    agent, twin = pair(settings, threads, "bf16")
    exact, batch = make_agent(tiny_config(**settings), device="cpu"), make_batch(0)
    metrics = [exact.update(batch, diagnostics=False), twin.update(batch, diagnostics=False)]
    with monkeypatch.context() as patched:
        for name in ("encode", "velocity"):
            patched.setattr(StackedFields, name, getattr(WholeInputs, name))
        patched.setattr(torch, "baddbmm", Rounded.apply)
        metrics.append(agent.update(batch, diagnostics=False))
    losses = [torch.stack([value for name, value in each.items() if "loss" in name]) for each in metrics]
    gradients = [
        torch.cat([one.grad.flatten() for one in each._parameters if one.grad is not None])
        for each in (exact, twin, agent)
    ]
    for far, found, expected in (losses, gradients):
        assert (found - expected).norm() < 0.02 * (far - expected).norm()
    assert {parameter.dtype for parameter in twin._parameters} == {torch.float32}


@needs_pairs
def test_a_checkpoint_of_updates_in_bf16_goes_on_bitwise() -> None:
    _, twin = pair({"preset": "small"}, matmul_precision="bf16")
    twin.update(make_batch(0))
    _, resumed = pair({"preset": "small"}, matmul_precision="bf16")
    resumed.load_state_dict(twin.state_dict())
    for each in (twin, resumed):
        each.update(make_batch(1))
    assert_same(twin.state_dict(), resumed.state_dict())


def test_a_precision_that_is_not_there_is_refused_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(tiny_config(preset="small"), device="cpu")
    with pytest.raises(ConfigError, match=r"tf32 is a GPU's, .* set bf16 or float32"):
        agent.compile(1, "tf32")
    with pytest.raises(ConfigError, match="bf16 is for a CPU, and this learner computes on cuda:0; set tf32"):
        precision.require_precision("bf16", torch.device("cuda:0"))
    monkeypatch.setattr(tiles, "HAS_PAIRS", False)
    with pytest.raises(ConfigError, match=r"AVX512-BF16 .* set float32"):
        agent.compile(1, "bf16")


def test_a_stack_is_not_given_inputs_of_another_width() -> None:
    """Compiled loops would read beyond them."""
    _, twin = pair({"preset": "small"})
    wrong: Tensor = torch.zeros(ROWS, 3)
    with pytest.raises(ValueError, match="inputs are float32 of shape"):
        twin.steps._passes.evaluate(twin.networks.critic, wrong)  # type: ignore[attr-defined]


def test_one_process_compiles_while_others_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiling, "_CACHE_DIRECTORY", str(tmp_path / "new"))
    order: list[str] = []

    def compile_too() -> None:
        with compiling.compiling_once():
            order.append("second")

    with compiling.compiling_once():
        other = threading.Thread(target=compile_too)
        other.start()
        other.join(0.5)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_where_no_lock_can_be_each_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(compiling, "_CACHE_DIRECTORY", str(tmp_path / "file"))
    with compiling.compiling_once():
        pass
