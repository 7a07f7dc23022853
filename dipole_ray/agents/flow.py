"""Flow matching: the straight path from noise to action, the guided field and its samplers.

Shapes: B rows, N candidates, O observation dim, A action dim; K denoise steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dipole_ray.agents import vp
from dipole_ray.agents.fields import StackedFields, VelocityField
from dipole_ray.agents.networks import PASSES
from dipole_ray.agents.packed import PackedFields


def path_point(noise: Tensor, actions: Tensor, t: Tensor) -> Tensor:
    """Return x_t = (1 - t) x_0 + t a, shape (B, A), for noise x_0 and actions (B, A) and times t (B, 1)."""
    return torch.lerp(noise, actions, t)


def path_velocity(noise: Tensor, actions: Tensor) -> Tensor:
    """Return the regression target u = a - x_0, shape (B, A): the path's velocity, constant in t."""
    return actions - noise


def guided_velocity(positive: Tensor, negative: Tensor, omega: float | Tensor) -> Tensor:
    """Combine the two fields into the field of the greedified policy, (1 + omega) v+ - omega v- (Eq. 10).

    v+ and v- have one shape, which omega, a number or a tensor, broadcasts to; at 0 it is v+ and at -1 v-.
    """
    # Not the textbook difference: of two large terms, it has twelve times the bfloat16 error at omega = 5.
    return positive + omega * (positive - negative)


def sample(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    denoise_steps: int,
    clip: bool = True,
    solver: str = "euler",
) -> Tensor:
    """Carry noise x_0, a draw of the standard normal, to actions of its shape: K steps of a solver from t = 0 to t = 1.

    `euler` asks the field at t = 0, 1/K, ..., (K-1)/K; `midpoint` uses that to go half a step, and asks again there
    for the velocity of the whole step. The result is clipped to the action box [-1, 1], once at the end.
    """
    x = noise
    for k in range(denoise_steps):
        v = velocity(x, k / denoise_steps)
        if solver == "midpoint":
            v = velocity(x + v / (2 * denoise_steps), (k + 0.5) / denoise_steps)
        x = x + v / denoise_steps
    return x.clamp(-1.0, 1.0) if clip else x


def generate(
    fields: VelocityField | PackedFields,
    observations: Tensor,
    noise: Tensor,
    along: list[str],
    denoise_steps: int,
    omega: float | Tensor = 0.0,
    solver: str = "euler",
) -> Tensor:
    """Carry noise (B, N, A) to actions in [-1, 1], for observations (B, O).

    The way goes along one named field, or along two, v+ and v-, that omega combines, a number or one for each row
    (B, 1, 1); no other field is evaluated. The solver is one of `sample`'s, or of `vp` `dpm` or `dpm-clipped`.
    """
    if isinstance(fields, PackedFields):
        return fields.generate(observations, noise, along, denoise_steps, omega, solver)
    passes = PASSES.get()
    if passes is not None and solver == "euler" and isinstance(fields, StackedFields) and not torch.is_grad_enabled():
        moved: Tensor = passes.generate(fields, observations, noise, along, denoise_steps, omega)
        return moved
    context = fields.encode(observations, along)

    def velocity(x: Tensor, t: float) -> Tensor:
        found = fields.velocity(context, x, t, along)
        return found[0] if len(found) == 1 else guided_velocity(found[0], found[1], omega)

    if solver.startswith("dpm"):
        return vp.sample(velocity, noise, denoise_steps, clips_predictions=solver == "dpm-clipped")
    return sample(velocity, noise, denoise_steps, solver=solver)
