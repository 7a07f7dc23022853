"""Passes of stacked MLPs on a CPU, forward and backward, each compiled as a whole; autograd sees one node a stack.

The rows of a pass are dealt to threads that meet only at its end, so a thread that has to wait for a core holds the
others up a few times an update, and not at every layer.

Shapes: E members, B rows, I inputs, O outputs, H hidden units, F fields, A action dim.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dipole_ray.agents.compiling import compiled
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.halves import product, room_for
from dipole_ray.agents.loops import activate, activate_backward, normalize, normalize_backward
from dipole_ray.agents.networks import LAYER_NORM_EPS, Members, StackedMLP
from dipole_ray.agents.tiles import PAIR

Array = np.ndarray
_NO_SHARES = np.zeros(1)
_MIN_WORK = 2**26
"""Multiplications that make another thread worth its start."""


class Stack(NamedTuple):
    """The parameters of a stack by layer, or their gradients: kernels (E, I, O), the others (E, 1, O) or (E, 1, H)."""

    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]
    scales: tuple[Array, ...]
    """Of the layer norms; where there are none, the biases stand here, too, since no tuple may be empty."""
    shifts: tuple[Array, ...]


class Room(NamedTuple):
    """Memory of a pass by hidden layer: pre-activations and results (E, B, H), and their gradients (B, H)."""

    zs: tuple[Array, ...]
    ys: tuple[Array, ...]
    ds: tuple[Array, ...]


class Pass(NamedTuple):
    """What a pass reads and leaves: inputs (E or 1, B, I), the hidden layers, outputs (E, B, O)."""

    inputs: Array
    hidden: Room
    outputs: Array


@compiled
def carry(points: Array, velocities: Array, shares: Array) -> None:
    """Move the points in the inputs (B, O + A + 1) by the share of each field's velocity (F, B, A)."""
    first = points.shape[1] - velocities.shape[2] - 1
    for f in range(velocities.shape[0]):
        for row in range(velocities.shape[1]):
            for a in range(velocities.shape[2]):
                points[row, first + a] += shares[f] * velocities[f, row, a]


@compiled
def run_forward(
    stack: Stack, members: Array, is_normal: bool, epsilon: Any, number: Any, run: Pass, shares: Array, steps: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Fill a pass of these members between two rows; `number` is of the type that products are computed in.

    With steps, the inputs are (1, B, O + A + 1), and their points are carried along the fields in so many passes, each
    field with its share of the velocity.
    """
    room, last = room_for(number, run.inputs, stop - start), len(stack.kernels) - 1
    for k in range(max(steps, 1)):
        if steps > 0:
            run.inputs[0, start:stop, -1] = k / steps
        for e in range(len(members)):
            m, x = members[e], run.inputs[e % run.inputs.shape[0], start:stop]
            for layer in range(last + 1):  # one call in a loop: each is compiled, inlined, for itself
                bias = stack.biases[layer][m, 0]
                z = run.outputs[e, start:stop] if layer == last else run.hidden.zs[layer][e, start:stop]
                product(x, False, stack.kernels[layer][m], False, z, False, room)
                if layer == last:
                    for row in range(z.shape[0]):
                        for o in range(z.shape[1]):
                            z[row, o] += bias[o]
                    break
                y = run.hidden.ys[layer][e, start:stop]
                if is_normal:
                    normalize(z, bias, stack.scales[layer][m, 0], stack.shifts[layer][m, 0], epsilon, y)
                else:
                    activate(z, bias, y)
                x = y
        if steps > 0:
            carry(run.inputs[0, start:stop], run.outputs[:, start:stop], shares)


@compiled
def run_backward(
    stack: Stack, members: Array, is_normal: bool, epsilon: Any, number: Any, run: Pass, gradient: Array, sums: Stack,
    learns: bool, inputs: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Add to the parameters' gradients what the rows between two say, given that of the outputs (E, B, O).

    The gradient of the inputs goes to `inputs` (E, B, I), unless that has no rows.
    """
    last, rows = len(stack.kernels) - 1, stop - start
    for kernel in stack.kernels:
        rows = max(rows, kernel.shape[1])
    room = room_for(number, run.inputs, rows)
    for e in range(len(members)):
        m, d = members[e], gradient[e, start:stop]
        if learns:
            for row in range(d.shape[0]):
                for o in range(d.shape[1]):
                    sums.biases[last][m, 0, o] += d[row, o]
        for layer in range(last, -1, -1):
            below = layer - 1
            if learns:
                x = run.hidden.ys[below][e, start:stop] if layer else run.inputs[e % run.inputs.shape[0], start:stop]
                product(x, True, d, False, sums.kernels[layer][m], True, room)
            if layer == 0 and inputs.shape[1] == 0:
                break
            above, d = d, run.hidden.ds[below][start:stop] if layer else inputs[e, start:stop]
            product(above, False, stack.kernels[layer][m], True, d, False, room)
            if layer == 0:
                break
            z = run.hidden.zs[below][e, start:stop]
            if is_normal:
                of = sums.biases[below][m, 0], sums.scales[below][m, 0], sums.shifts[below][m, 0]
                normalize_backward(z, d, stack.scales[below][m, 0], epsilon, of)
            else:
                activate_backward(z, d, sums.biases[below][m, 0])


class Plan(NamedTuple):
    """How some members of a stack are gone through; made once."""

    stack: Stack
    members: Array
    """Their places in the stack, E of them."""
    is_normal: bool
    epsilon: Any
    number: Any
    """Of the type that products are computed in, see `halves.room_for`."""
    gradients: list[Stack]
    """Of the parameters, one a thread."""
    spare: Stack
    """Takes the gradients that nothing learns from."""
    hidden: tuple[int, ...]
    """Widths."""
    size: int
    """Multiplications of a row's forward pass."""


class Passes:
    """Evaluates the stacks of one agent, whose parameters and gradients must stay where they are in memory."""

    def __init__(self, gradients: dict[nn.Parameter, tuple[Tensor, ...]], threads: int, *, in_halves: bool) -> None:
        """Take the gradient tensors of all trained parameters, one a thread, to which every backward pass adds.

        Products are computed `in_halves`, or in the parameters' own numbers.
        """
        self._gradients = gradients
        self._threads, self._in_halves = threads, in_halves
        self._crew = ThreadPoolExecutor(threads - 1, "passes") if threads > 1 else None
        self._plans: dict[tuple[StackedMLP, tuple[int, ...] | None], Plan] = {}
        self._free: dict[tuple[int, int, tuple[int, ...]], list[Room]] = {}

    def evaluate(self, mlp: StackedMLP, inputs: Tensor, members: Members = None) -> Tensor:
        """Return what `StackedMLP.forward` does."""
        plan = self._plan(mlp, members)
        if torch.is_grad_enabled() and (mlp.kernels[0].requires_grad or inputs.requires_grad):
            result: Tensor = _Pass.apply(inputs, mlp.kernels[0], self, plan)
            return result
        run = self.forward(plan, inputs)
        self.release(plan, run)
        return torch.from_numpy(run.outputs)

    def warm_up(self, mlp: StackedMLP) -> None:
        """Compile the passes of a stack, without a trace but in the gradients that they were given."""
        plan = self._plan(mlp, None)
        run = self.forward(plan, torch.zeros_like(mlp.kernels[0][0, :, :1].T))
        self.backward(plan, run, torch.zeros_like(torch.from_numpy(run.outputs)), learns=False, needs_inputs=True)

    def forward(self, plan: Plan, inputs: Tensor) -> Pass:
        """Return the pass of the inputs, (B, I) for every member or (E, B, I)."""
        run = self._pass(plan, inputs if inputs.dim() == 3 else inputs.unsqueeze(0))
        self._run(plan, run, _NO_SHARES.astype(run.inputs.dtype), 0)
        return run

    def backward(self, plan: Plan, run: Pass, gradient: Tensor, learns: bool, needs_inputs: bool) -> Tensor:
        """Add to the parameters' gradients, if it learns, given that of the outputs (E, B, O).

        Returned is the gradient of the inputs (E, B, I), without rows unless needed.
        """
        rows, d = run.inputs.shape[1], gradient.contiguous().numpy()
        inputs = np.empty((len(plan.members), rows if needs_inputs else 0, run.inputs.shape[2]), run.inputs.dtype)
        way = plan.stack, plan.members, plan.is_normal, plan.epsilon, plan.number
        self.deal(
            lambda thread, *part: run_backward(
                *way, run, d, plan.gradients[thread] if learns else plan.spare, learns, inputs, *part
            ),
            rows,
            2 * plan.size,
        )
        self.release(plan, run)
        return torch.from_numpy(inputs)

    def generate(
        self, fields: StackedFields, observations: Tensor, noise: Tensor, along: list[str], steps: int, omega: float
    ) -> Tensor:
        """Return what `flow.generate` does, without a gradient."""
        candidates, actions = noise.shape[1:]
        plan = self._plan(fields.mlp, [fields.names.index(name) for name in along])
        states = observations.repeat_interleave(candidates, dim=0) if candidates > 1 else observations
        x = torch.cat((states, noise.flatten(0, 1), noise.new_empty(len(states), 1)), dim=1)
        run = self._pass(plan, x.unsqueeze(0))
        shares = np.array([1.0] if len(along) == 1 else [1.0 + omega, -omega]) / steps
        shares = shares.astype(run.inputs.dtype)
        self._run(plan, run, shares, steps)
        self.release(plan, run)
        return x[:, -actions - 1 : -1].clamp(-1.0, 1.0).view_as(noise)

    def deal(self, work: Callable[..., Any], count: int, size: int) -> list[Any]:
        """Return what the work comes to on each thread's part of what there is to count, of this size each.

        Few multiplications stay on one thread. The caller's own part is the first; then it takes on what no thread has
        begun, since that waits for a core, and waits for the rest.
        """
        parts = max(1, min(self._threads, count, count * size // _MIN_WORK))
        if self._crew is None or parts == 1:
            return [work(0, 0, count)]
        ends = [count * part // parts for part in range(parts + 1)]
        rest = [(part, *ends[part : part + 2]) for part in range(1, parts)]
        others = [self._crew.submit(work, *each) for each in rest]
        found = [work(0, *ends[:2])]
        for each, other in zip(rest, others, strict=True):
            found.append(work(*each) if other.cancel() else other.result())
        return found

    def release(self, plan: Plan, run: Pass) -> None:
        """Let another pass have the room of this one: fresh memory comes a page at a time, each with a fault."""
        self._free[len(plan.members), run.inputs.shape[1], plan.hidden].append(run.hidden)

    def _pass(self, plan: Plan, inputs: Tensor) -> Pass:
        """Return a pass of the inputs (E or 1, B, I) that is to be computed, its room from those released."""
        array, members, first = np.ascontiguousarray(inputs.detach().numpy()), len(plan.members), plan.stack.kernels[0]
        if len(array) not in (1, members) or array.shape[2] != first.shape[1] or array.dtype != first.dtype:
            found = f"{array.dtype} of shape {array.shape}"  # compiled loops look at no bounds
            raise ValueError(f"stack of {members} kernels {first.dtype} {first.shape[1:]}: inputs are {found}")
        rows, kind = array.shape[1], array.dtype
        free = self._free.setdefault((members, rows, plan.hidden), [])
        if not free:
            zs, ys = (tuple(np.empty((members, rows, width), kind) for width in plan.hidden) for _ in range(2))
            free.append(Room(zs, ys, tuple(np.empty((rows, width), kind) for width in plan.hidden)))
        return Pass(array, free.pop(), np.empty((members, rows, plan.stack.biases[-1].shape[2]), kind))

    def _run(self, plan: Plan, run: Pass, shares: Array, steps: int) -> None:
        way = plan.stack, plan.members, plan.is_normal, plan.epsilon, plan.number, run, shares, steps
        self.deal(lambda _, *part: run_forward(*way, *part), run.inputs.shape[1], max(steps, 1) * plan.size)

    def _gradient(self, thread: int, parameter: nn.Parameter) -> Tensor:
        return self._gradients[parameter][thread]

    def _plan(self, mlp: StackedMLP, members: Members) -> Plan:
        """Return how the chosen members are gone through."""
        chosen = None if members is None else tuple(np.arange(mlp.num_members)[members].tolist())
        if (mlp, chosen) not in self._plans:
            self._plans[mlp, chosen] = self._new_plan(mlp, range(mlp.num_members) if chosen is None else chosen)
        return self._plans[mlp, chosen]

    def _new_plan(self, mlp: StackedMLP, chosen: Sequence[int]) -> Plan:
        """Make arrays of the parameters' memory and of that of their gradients."""
        parts = [list(part) for part in (mlp.kernels, mlp.biases, mlp.norm_scales, mlp.norm_shifts)]
        parts = [part or parts[1][:-1] for part in parts]

        def arrays(of: Callable[[nn.Parameter], Tensor]) -> Stack:
            return Stack(*(tuple(of(parameter).detach().numpy() for parameter in part) for part in parts))

        stack, dims = arrays(lambda parameter: parameter), [kernel.shape[1:] for kernel in mlp.kernels]
        spare = Stack(stack.kernels, *(tuple(map(np.zeros_like, part)) for part in stack[1:]))
        is_trained = {parameter in self._gradients for part in parts for parameter in part}
        if len(is_trained) > 1:
            raise ValueError("a stack of which some parameters are frozen and some not has no compiled pass")
        by_thread = [partial(self._gradient, thread) for thread in range(self._threads)]
        gradients = [arrays(of) if all(is_trained) else spare for of in by_thread]
        own = stack.kernels[0].dtype.type
        epsilon, number = own(LAYER_NORM_EPS), PAIR(0) if self._in_halves else own(0)
        size = len(chosen) * sum(inputs * outputs for inputs, outputs in dims)
        hidden = tuple(outputs for _, outputs in dims[:-1])
        return Plan(stack, np.array(chosen), mlp.layer_norm, epsilon, number, gradients, spare, hidden, size)


class _Pass(torch.autograd.Function):
    """A stack's pass as one node; the parameters' gradients go where `Passes` was told."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, anchor: Tensor, passes: Passes, plan: Plan) -> Tensor:  # type: ignore[override]
        run = passes.forward(plan, inputs)
        ctx.kept, ctx.learns, ctx.is_shared = (passes, plan, run), anchor.requires_grad, inputs.dim() == 2
        return torch.from_numpy(run.outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        passes, plan, run = ctx.kept
        needed = ctx.needs_input_grad[0]
        found = passes.backward(plan, run, gradient, ctx.learns, needed)
        inputs = found.sum(dim=0) if ctx.is_shared else found
        return inputs if needed else None, None, None, None
