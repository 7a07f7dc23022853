"""Microseconds of the parts of an update on a GPU, each alone in a graph; for `benchmarks.gpu.check`."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.eager import SCHEMA
from dipole_ray.agents import agent as agents
from dipole_ray.agents import flow, state
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.networks import FUSED

PRECISIONS = {"float32": "highest", "tf32": "high"}


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

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    found = {}
    for precision, name in PRECISIONS.items():
        torch.set_float32_matmul_precision(name)
        for members, rows in ((1, 256), (2, 256)):
            x, w, y = normal(members, rows, 512), normal(members, 512, 512), normal(members, rows, 512)
            b = normal(members, 1, 512)
            what = f"{precision} [{members},{rows},512]"
            found[f"{what} bmm"] = graph_us(lambda x=x, w=w: torch.bmm(x, w))
            found[f"{what} baddbmm with bias"] = graph_us(lambda x=x, w=w, b=b: torch.baddbmm(b, x, w))
            found[f"{what} gradient of the input"] = graph_us(lambda y=y, w=w: torch.bmm(y, w.transpose(1, 2)))
            found[f"{what} gradient of the kernel"] = graph_us(lambda x=x, y=y: torch.bmm(x.transpose(1, 2), y))
        found |= {f"{precision} {what}": us for what, us in fused_parts().items()}
    torch.set_float32_matmul_precision("highest")
    x, scale, shift, scalar = normal(2, 256, 512), normal(2, 1, 512), normal(2, 1, 512), normal(1)[0]
    found["[2,256,512] GELU"] = graph_us(lambda: F.gelu(x, approximate="tanh"))
    found["[2,256,512] layer norm"] = graph_us(lambda: F.layer_norm(x, (512,)))
    found["[2,256,512] addcmul"] = graph_us(lambda: torch.addcmul(shift, x, scale))
    found["[2,256,512] sum over rows"] = graph_us(lambda: x.sum(dim=1, keepdim=True))
    found["[2,256,512] multiply"] = graph_us(lambda: x * x)
    found["scalar add"] = graph_us(lambda: scalar + 1.0)
    return found | parameter_parts()


def fused_parts() -> dict[str, float]:
    """Return microseconds of the fused kernels at 3 x 512, and of the sampler as torch does it."""
    from dipole_ray.agents import fused

    agent = make_agent(AgentConfig.preset("paper"))
    fields = agent.networks.fields
    noise, observations = torch.randn(256, 1, 5, device="cuda"), torch.randn(256, 28, device="cuda")
    found = {}
    with torch.no_grad():
        for name, kernels_of in {"torch": None, "fused": fused}.items():
            token = FUSED.set(kernels_of)
            sample = partial(flow.generate, fields, observations, noise, ["positive"], 10)
            found[f"sampler of 10 steps, {name}"] = graph_us(sample, repeats=5)
            FUSED.reset(token)
        (kernels, biases), layer = fields.layers_of(["positive"]), torch.randn(1, 256, 512, device="cuda")
        for tile, depth, warps in ((32, 64, 4), (32, 128, 4), (32, 64, 2), (64, 64, 4), (16, 128, 2)):
            for kind in ("tf32",) if torch.get_float32_matmul_precision() == "high" else ("ieee", "tf32x3"):
                grid, out = (-(-256 // tile), -(-512 // tile), 1), torch.empty_like(layer)
                options = {"WIDTH": 512, "H": 512, "TILE": tile, "DEPTH": depth, "PRECISION": kind, "num_warps": warps}
                found[f"product + bias + GELU, tile {tile}, depth {depth}, {warps} warps, {kind}"] = attempt_us(
                    lambda grid=grid, out=out, options=options: fused._dense[grid](
                        layer, kernels[1], biases[1], out, 256, **options
                    )
                )
        z, one = torch.randn(2, 256, 512, device="cuda"), torch.randn(2, 1, 512, device="cuda")
        found["[2,256,512] bias + GELU + norm"] = graph_us(lambda: fused.activate(z, one, one, one, 1e-6))
    return found


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
        from dipole_ray.agents import fused

        group, one = agent.optimizer.param_groups[0], torch.ones((), device="cuda")
        place = flat[1].clone()[: len(flat[0]) // 3], 0, 0.005, False
        found["Adam + Polyak, fused"] = graph_us(
            lambda: fused.adam(flat[0], flat[1], (flat[2], flat[3]), steps[:1][0], one - 1.0, place, group)
        )
        weight = torch.tensor(0.005, device="cuda")
        critics = flat[0][: len(flat[0]) // 2]
        found["Polyak, flat"] = graph_us(lambda: flat[1][: len(critics)].lerp_(critics, weight))
        scattered = [torch.randn_like(tensor) for tensor in tensors]
        found["copy of the gradients from apart"] = graph_us(lambda: torch._foreach_copy_(gradients, scattered))
    return found
