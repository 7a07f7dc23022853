"""The preset `paper`'s update in JAX, one jitted function with its state donated, to measure compiled updates against.

Needs the extra `jax` (`pip install '.[jax]'`). Maths, weights and noise are an agent's, so that losses can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch

from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.agents.networks import LAYER_NORM_EPS, StackedMLP

Stack = dict[str, list[jax.Array]]


def arrays(mlp: StackedMLP) -> Stack:
    """Return the parameters of a stack, each (E, ...)."""
    parts = {"kernels": mlp.kernels, "biases": mlp.biases, "scales": mlp.norm_scales, "shifts": mlp.norm_shifts}
    return {name: [jnp.array(parameter.detach().numpy()) for parameter in part] for name, part in parts.items()}


def evaluate(stack: Stack, x: jax.Array) -> jax.Array:
    """Return what `StackedMLP.forward` does for inputs (B, I) of every member."""
    hidden = jnp.broadcast_to(x, (len(stack["kernels"][0]), *x.shape))
    for layer, (kernel, bias) in enumerate(zip(stack["kernels"], stack["biases"], strict=True)):
        hidden = hidden @ kernel + bias
        if layer == len(stack["kernels"]) - 1:
            return hidden
        hidden = jax.nn.gelu(hidden, approximate=True)
        if stack["scales"]:
            mean, variance = hidden.mean(-1, keepdims=True), hidden.var(-1, keepdims=True)
            normal = (hidden - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPS)
            hidden = normal * stack["scales"][layer] + stack["shifts"][layer]
    raise AssertionError


class JaxLearner:
    """Takes an agent's weights, and then the noise of each update."""

    def __init__(self, agent: DipoleAgent) -> None:
        config, nets = agent.config, agent.networks
        assert config.weight_scheme == "dipole" and config.advantage_normalization == "none"
        assert config.target_update == "after" and config.target_candidates == 1
        trained = {"critic": arrays(nets.critic), "value": arrays(nets.value), "fields": arrays(nets.fields.mlp)}
        zeros = jax.tree.map(jnp.zeros_like, trained)
        targets = arrays(nets.target_critic)
        self._state: Any = (trained, targets, (zeros, jax.tree.map(jnp.zeros_like, trained)), jnp.zeros(()))
        self._update = jax.jit(partial(_update, config), donate_argnums=0)

    def update(self, batch: Mapping[str, Any], noise: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Take one step; the noise is `bootstrap` and `path` (B, A), and the times `t` (B, 1)."""
        self._state, losses = self._update(self._state, batch, noise)
        return losses


def draw(agent: DipoleAgent, generator: torch.Generator) -> dict[str, Any]:
    """Return the noise of one update in the agent's order."""
    rows, actions = agent.config.batch_size, agent.sizes.action_dim
    noise = {}
    if agent.config.bootstrap == "policy":
        noise["bootstrap"] = torch.randn(rows, 1, actions, generator=generator)[:, 0].numpy()
    noise["path"] = torch.randn(rows, actions, generator=generator).numpy()
    return {**noise, "t": torch.rand(rows, 1, generator=generator).numpy()}


def _losses(
    config: Any, trained: Any, targets: Stack, batch: Any, noise: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    s, a, after = batch["observations"], batch["actions"], batch["next_observations"]
    pairs = jnp.concatenate((s, a), axis=1)
    fixed = jax.lax.stop_gradient(trained)
    if config.bootstrap == "policy":
        x, pi = noise["bootstrap"], jax.tree.map(lambda p: p[:1], fixed["fields"])
        for k in range(config.denoise_steps):
            t = jnp.full((len(x), 1), k / config.denoise_steps, x.dtype)
            x = x + evaluate(pi, jnp.concatenate((after, x, t), axis=1))[0] / config.denoise_steps
        next_pairs = jnp.concatenate((after, x.clip(-1, 1)), axis=1)
        q_both = evaluate(targets, jnp.concatenate((pairs, next_pairs)))[..., 0]
        q_data, bootstrap = q_both[:, : len(s)], q_both[:, len(s) :].mean(axis=0)
    else:
        q_data, bootstrap = evaluate(targets, pairs)[..., 0], evaluate(fixed["value"], after)[0, :, 0]
    target = batch["rewards"] + batch["discounts"] * batch["masks"] * bootstrap
    v = evaluate(trained["value"], s)[0, :, 0]
    residual = q_data.min(axis=0) - v
    value_loss = (jnp.where(residual < 0, 1 - config.expectile, config.expectile) * residual**2).mean()
    critic_loss = ((evaluate(trained["critic"], pairs)[..., 0] - target) ** 2).mean()
    logits = config.beta * jax.lax.stop_gradient(residual) + config.shift
    weights = jnp.stack((jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)))
    x_t = (1 - noise["t"]) * noise["path"] + noise["t"] * a
    velocities = evaluate(trained["fields"], jnp.concatenate((s, x_t, noise["t"]), axis=1))
    field_losses = (weights * ((velocities - (a - noise["path"])) ** 2).mean(axis=-1)).mean(axis=-1)
    named = {"critic/loss": critic_loss, "value/loss": value_loss}
    named |= {"actor/loss_positive": field_losses[0], "actor/loss_negative": field_losses[1]}
    return critic_loss + value_loss + field_losses.sum(), named


def _update(config: Any, state: Any, batch: Any, noise: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Return the state after a step of Adam and of the targets, unchanged if the gradient is not finite; and losses."""
    trained, targets, (mean, square), count = state
    gradients, losses = jax.grad(partial(_losses, config), has_aux=True)(trained, targets, batch, noise)
    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
    count = count + 1
    new_mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradients)
    new_square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, square, gradients)
    rate, spread = config.learning_rate / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
    moved = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / spread + 1e-8), trained, new_mean, new_square)
    followed = jax.tree.map(lambda t, p: t + config.tau * (p - t), targets, moved["critic"])
    new = moved, followed, (new_mean, new_square), count
    return jax.tree.map(lambda now, before: jnp.where(jnp.isfinite(norm), now, before), new, state), losses
