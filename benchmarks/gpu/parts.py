"""Microseconds of the parts of an update on a GPU, each alone in a graph; for `benchmarks.gpu.check`."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.eager import SCHEMA
from dipole_ray.agents import agent as agents
from dipole_ray.agents import flow, fused, fused_pass, state
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.fused import FusedPasses
from dipole_ray.agents.fused_layers import Tile
from dipole_ray.agents.fused_pass import Pass, Stack, precision
from dipole_ray.agents.networks import PASSES

PRECISIONS = {"float32": "highest", "tf32": "high"}
MEMBERS = 1, 2, 16
TILES = [
    Tile(32, 32, 64, 4),
    Tile(32, 64, 64, 4),
    Tile(32, 128, 32, 4),
    Tile(64, 64, 32, 2),
    Tile(64, 64, 32, 4),
    Tile(64, 128, 32, 4),
    Tile(128, 128, 32, 8),
]


def make_agent(config: AgentConfig, seed: int = 0, device: str = "cuda") -> Agent:
    return agents.make_agent(config, SCHEMA, seed=seed, device=device)


def graph_us(call: Callable[[], object], repeats: int = 50) -> float:
    """Return the microseconds of one call in a graph that holds many, one after the other."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / repeats)
    return min(times)


def parts() -> dict[str, float]:
    """Return microseconds of the parts of an update at 3 x 512, each alone in a graph."""
    found = {}
    for kind, name in PRECISIONS.items():
        torch.set_float32_matmul_precision(name)
        found |= {f"{kind} {what}": us for what, us in (library_parts() | fused_parts()).items()}
    torch.set_float32_matmul_precision("highest")
    return found | parameter_parts()


def library_parts() -> dict[str, float]:
    """Return microseconds of torch's products at 3 x 512 by the number of members, and of the sampler."""
    found = {}
    for members in MEMBERS:
        x, w, y = (torch.randn(members, rows, 512, device="cuda") for rows in (256, 512, 256))
        found[f"[{members},256,512] bmm"] = graph_us(lambda x=x, w=w: torch.bmm(x, w))
        found[f"[{members},256,512] gradient of the input"] = graph_us(lambda y=y, w=w: torch.bmm(y, w.transpose(1, 2)))
        found[f"[{members},256,512] gradient of the kernel"] = graph_us(
            lambda y=y, x=x: torch.bmm(x.transpose(1, 2), y)
        )
    fields = make_agent(AgentConfig.preset("paper")).networks.fields
    noise, observations = torch.randn(256, 1, 5, device="cuda"), torch.randn(256, 28, device="cuda")
    sample = partial(flow.generate, fields, observations, noise, ["positive"], 10)
    with torch.no_grad():
        found["sampler of 10 steps, torch"] = graph_us(sample, repeats=5)
        token = PASSES.set(FusedPasses([], [], Branches()))
        found["sampler of 10 steps, fused"] = graph_us(sample, repeats=5)
        PASSES.reset(token)
    return found


def fused_parts() -> dict[str, float]:
    """Return microseconds of a hidden layer of 512 units with its norm, and of its gradients, by members and tile."""
    found, kept = {}, fused_pass.tile_for
    for members in MEMBERS:
        shapes = [(512, 512), (512, 512), (512, 1), (1, 512), (1, 512), (1, 1), (1, 512), (1, 512), (1, 512), (1, 512)]
        stack = Stack.of([torch.randn(1, members, *shape, device="cuda") for shape in shapes], 3)
        run, places = Pass(stack, torch.randn(1, members, 256, 512, device="cuda"), precision()), stack.room()
        d = torch.randn(members, 256, 512, device="cuda")
        for tile in TILES if precision() == "tf32" else TILES[:3]:
            fused_pass.tile_for = lambda *_, tile=tile: tile
            sides = f"{tile.rows} x {tile.columns} x {tile.depth}, {tile.warps} warps, {tile.stages} stages"
            try:
                run.results, run.slopes, run.moments = [], [], []
                below = run._hidden(0, None, keep=True)
                run._hidden(1, below, keep=True)
                run._outputs()
                sums = run._through_activation(0, d)[1]
            except Exception:
                traceback.print_exc()
                continue
            calls = {
                "hidden layer": partial(hidden_again, run, below),
                "gradient of the input": partial(run._through_product, 1, d),
                "gradients of parameters": partial(run._parameters, 0, d, sums, places),
            }
            for what, call in calls.items():
                found[f"[{members},256,512] {what}, {sides}"] = attempt_us(call)
        fused_pass.tile_for = kept
        found[f"[{members},256,512] gradient of GELU and norm"] = attempt_us(
            lambda run=run, d=d: run._through_activation(0, d)
        )
        found[f"[{members},256,512] last layer"] = attempt_us(run._outputs)
    return found


def hidden_again(run: Pass, below: Tensor | None) -> None:
    """Go through the second hidden layer once more, and leave the pass as it was."""
    kept = run.results, run.slopes, run.moments
    run.results, run.slopes, run.moments = list(run.results[:1]), [], []
    run._hidden(1, below, keep=True)
    run.results, run.slopes, run.moments = kept


def attempt_us(call: Callable[[], object]) -> float:
    """Return what `graph_us` does, or NaN for a shape that the device has no room for."""
    try:
        return graph_us(call)
    except Exception:
        traceback.print_exc()
        return float("nan")


def parameter_parts() -> dict[str, float]:
    """Return microseconds of what goes over all parameters, flat and by parameter."""
    agent = make_agent(AgentConfig.preset("paper"))
    tensors = agent._parameters
    found = {}
    gradients = [torch.randn_like(tensor) for tensor in tensors]
    steps = [agent.optimizer.state[tensor]["step"] for tensor in tensors]
    moments = [[agent.optimizer.state[tensor][kind] for tensor in tensors] for kind in ("exp_avg", "exp_avg_sq")]
    rest = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    rest |= {"amsgrad": False, "maximize": False}
    with torch.no_grad():
        found["Adam by parameter"] = graph_us(
            lambda: torch._fused_adam_(list(tensors), gradients, *moments, [], steps, **rest)
        )
        found["norm by parameter"] = graph_us(lambda: torch.nn.utils.get_total_norm(gradients))
        flat = [state.flatten(part) for part in (tensors, gradients, *moments)]
        found["Adam, flat"] = graph_us(lambda: torch._fused_adam_(*([each] for each in flat), [], steps[:1], **rest))
        found["norm, flat"] = graph_us(lambda: torch.linalg.vector_norm(flat[1]))
        found["copy of the gradients, flat"] = graph_us(lambda: torch._foreach_copy_(gradients, moments[0]))
        group, one = agent.optimizer.param_groups[0], torch.ones(1, device="cuda")
        followers = flat[1].clone()[None, : len(flat[0]) // 3], 0, 0.005, False
        rates, rows = one.double() * 1e-3, [each.unsqueeze(0) for each in flat]
        numbers = torch.ones(1, 64, device="cuda")
        found["norm and guard, fused"] = graph_us(lambda: fused.guard(one, rows[1], one.clone(), numbers, 10))
        found["Adam + Polyak, fused"] = graph_us(
            lambda: fused.adam(rows[0], rows[1], (rows[2], rows[3]), numbers, one - 1.0, followers, rates, group)
        )
        weight = torch.tensor(0.005, device="cuda")
        critics = flat[0][: len(flat[0]) // 2]
        found["Polyak, flat"] = graph_us(lambda: flat[1][: len(critics)].lerp_(critics, weight))
        scattered = [torch.randn_like(tensor) for tensor in tensors]
        found["copy of the gradients from apart"] = graph_us(lambda: torch._foreach_copy_(gradients, scattered))
    return found
