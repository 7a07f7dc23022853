"""The learner: K gradient steps of the agent per call, on batches straight from the replay.

Several learners get the same calls; each takes its share of every batch's rows (see `agents/data_parallel.py`).
"""

import os
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.utils.actor_manager import FaultAwareApply
from ray.rllib.utils.framework import get_device
from torch import Tensor

from dipole_ray.agents.adapters import with_backbone
from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.data_parallel import DataParallel
from dipole_ray.agents.precision import torch_products
from dipole_ray.agents.state import check_matches, copy_into
from dipole_ray.columns import flattened
from dipole_ray.envs.spaces import schema_of
from dipole_ray.errors import NonFiniteError
from dipole_ray.rllib.stack import LearnerStack

JOIN_TIMEOUT = timedelta(minutes=30)
"""Longest wait of a learner for the others, at the start and in each exchange."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one call of the learner did."""

    num_updates: int
    busy_s: float
    """Gradient steps computed, and the seconds they took."""
    metrics: dict[str, float]
    """`group/name` values: losses averaged over the call, diagnostics of its last step."""


class DIPOLELearner(FaultAwareApply):
    """Hosts the agent, in the training process or as an actor, on a GPU where it was given one.

    RLlib's own learner takes one loss a call and one step of one optimizer; the agent also draws noise, skips updates
    that are not finite and moves its targets, K times a call.
    """

    agent: Agent

    def __init__(self, config: Any) -> None:
        self.config = config
        self._captured: CapturedUpdates | None = None  # on a GPU, from the first call on
        self.stack: LearnerStack | None = None  # with which learners of other runs it takes its steps, if with any

    def address(self) -> str:
        """Return where the others can join this learner, the first."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def build(self, rank: int = 0, size: int = 1, address: str | None = None) -> None:
        """Build the agent on this learner's device; the first of `size` learners waits at `address` for the others."""
        torch.set_num_threads(self.config.learner_num_threads)
        device = get_device(self.config, self.config.num_gpus_per_learner)
        schema = schema_of(self.config.observation_space, self.config.action_space)
        agent, seed = self.config.agent_settings(), self.config.seed or 0
        self.agent = make_agent(agent, schema, seed=seed, device=device)
        if size > 1:
            backend = "gloo" if torch.device(device).type == "cpu" else "nccl"
            torch.distributed.init_process_group(
                backend, init_method=address, rank=rank, world_size=size, timeout=JOIN_TIMEOUT
            )
            self.agent.data_parallel = DataParallel.of_process_group()
        if rank == 0:
            ring = self.config.replay_directory  # without a run's folder the learner knows of no place but this
            place = Path(tempfile.gettempdir()) / f"dipole-{os.getpid()}" if ring is None else Path(ring).parent
            self.agent.failure_directory = place / "failures"
        self._clone_steps = self.config.training_settings().clone_learner_steps
        if self._clone_steps:
            self.agent.clone(True)
        self._compile()

    def _compile(self) -> None:
        self._captured = None
        self.agent.compile(self.config.learner_num_threads, self.config.learner_matmul_precision)

    def update_on(
        self, batches: Mapping[str, Any], batch_size: int, publish: bool = False
    ) -> tuple[UpdateReport, dict[str, Tensor] | None]:
        """Run one gradient step on each consecutive batch; of several learners, each on its share of the rows.

        The replay's arrays have the leading dimension K * `batch_size`. Returned are the report and, to `publish`, the
        policy's tensors (on the CPU) for the rollout workers. NonFiniteError after ten updates in a row that were not
        finite, with the batch saved; RankLost where another learner died.
        """
        start = time.perf_counter()
        parallel = self.agent.data_parallel
        columns = flattened(batches).items()
        shares = {name: _tensor(parallel.shard(array, batch_size)) for name, array in columns}
        rows = batch_size // parallel.size
        num_updates = len(shares["rewards"]) // rows
        captures = self.agent.device.type == "cuda" and parallel.size == 1 and not self.agent.networks.is_encoded
        if self.stack is not None:
            metrics = self.stack.update_on(self, shares)
        elif captures:
            with self.products():
                if self._captured is None or self._captured.max_updates < num_updates:
                    self._captured = CapturedUpdates([self.agent], batch_size, num_updates)
                (outcome,) = self._captured.update_on([shares])
            if isinstance(outcome, NonFiniteError):
                raise outcome
            metrics = outcome
        else:
            metrics = self.update_alone(shares, rows)
        if self.agent.is_cloning and self.agent.learner_steps >= self._clone_steps:
            self.agent.clone(False)
            self._compile()
        policy = self.policy_state() if publish else None
        return UpdateReport(num_updates=num_updates, busy_s=time.perf_counter() - start, metrics=metrics), policy

    def products(self) -> AbstractContextManager[None]:
        """Let torch's products in a block be of the precision that the config asks for."""
        return torch_products(self.config.learner_matmul_precision)

    def update_alone(self, shares: Mapping[str, Tensor], rows: int) -> dict[str, float]:
        """Take each consecutive batch of so many `rows` by the agent's own step, and return the call's metrics."""
        columns = {name: share.to(self.agent.device, non_blocking=True) for name, share in shares.items()}
        num_updates = len(columns["rewards"]) // rows
        sums: dict[str, Tensor] = {}
        last: dict[str, Tensor] = {}
        for k in range(num_updates):
            batch = {name: column[k * rows : (k + 1) * rows] for name, column in columns.items()}
            with self.products():
                last = self.agent.update(batch, diagnostics=k == num_updates - 1)
            for name, value in last.items():  # stays on the device: nothing is waited for between two updates
                sums[name] = sums[name] + value if name in sums else value
        metrics = {name: float(value) for name, value in last.items()}
        metrics.update({name: float(total) / num_updates for name, total in sums.items() if "/loss" in name})
        metrics["system/compiled_updates"] = float(self.agent.steps.is_compiled)
        return metrics

    def fit_observations(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set what the agent normalizes observations with (see `Agent.fit_observations`)."""
        self.agent.fit_observations(mean.copy(), std.copy())

    def agent_state(self) -> dict[str, Tensor]:
        """Return the agent's complete state on the CPU, for a checkpoint."""
        return {name: tensor.detach().cpu() for name, tensor in self.agent.state_dict().items()}

    def load_agent_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly from a state returned by `agent_state`."""
        was_cloning = self.agent.is_cloning
        self.agent.load_state_dict(dict(state))
        if self.agent.is_cloning != was_cloning:
            self._compile()

    def adapter_config(self) -> dict[str, Any]:
        """Return how PEFT describes the agent's adapters; empty where it has none."""
        return dict(getattr(getattr(self.agent.networks, "fields", None), "adapter_config", {}))

    def backbone(self) -> dict[str, Tensor] | None:
        """Return the frozen backbone of adapters, on the CPU; None while it is trained, and where there is none."""
        adapted = self.agent.networks.adapted
        if adapted is None or not adapted.is_frozen:
            return None
        return {name: tensor.detach().cpu().clone() for name, tensor in adapted.backbone_state().items()}

    def policy_state(self) -> dict[str, Tensor]:
        """Return what acting needs, on the CPU."""
        return (self._captured or self.agent.policy).policy_state()

    def module_state(self) -> dict[str, np.ndarray]:
        """Return the networks, those that act under their names in `DIPOLERLModule.get_state`."""
        tensors = with_backbone(self.agent.networks.state_dict(), self.backbone() or {}, "fields.")
        return {f"networks.{name}": tensor.cpu().clone().numpy() for name, tensor in tensors.items()}

    def load_module_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on with the networks of a `module_state`; optimizer and counters stay as they are."""
        tensors = {name.removeprefix("networks."): torch.as_tensor(array) for name, array in state.items()}
        tensors = dict(self.agent.networks.follow(tensors))
        own = self.agent.networks.state_dict()
        check_matches(own, tensors, "module state")
        copy_into(own, tensors)


def _tensor(array: np.ndarray) -> Tensor:
    """Return `array` as a tensor; arrays from Ray's object store are read-only and are copied first."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
