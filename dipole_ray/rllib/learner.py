"""The learner: K gradient steps of the agent per call, on batches straight from the replay.

Several learners get the same calls; each takes its share of every batch's rows (see `agents/data_parallel.py`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from torch import Tensor

from dipole_ray.agents.agent import Agent
from dipole_ray.agents.data_parallel import DataParallel


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one call of the learner did."""

    num_updates: int
    """Gradient steps computed."""
    busy_s: float
    """Seconds the learner computed in this call."""
    metrics: dict[str, float]
    """`group/name` values: losses averaged over the call, diagnostics of its last step."""


class DIPOLELearner(TorchLearner):
    """Hosts the agent inside RLlib's LearnerGroup, on a GPU where it was given one."""

    agent: Agent

    def build(self) -> None:
        """Set the thread count, then build module and optimizer as RLlib does."""
        torch.set_num_threads(self.config.learner_num_threads)
        super().build()

    def _make_module(self) -> MultiRLModule:
        """Build the module, with the agent on this learner's device."""
        module = super()._make_module()
        if self.device is not None and torch.device(self.device).type != "cpu":
            module[DEFAULT_MODULE_ID].build_agent(self.device)
        self.agent = module[DEFAULT_MODULE_ID].agent
        if self.config.num_learners > 1:
            self.agent.data_parallel = DataParallel.of_process_group()
        if self.agent.data_parallel.rank == 0:
            ring = self.config.replay_directory  # without a run's folder the learner knows of no place but this
            place = Path(tempfile.gettempdir()) / f"dipole-{os.getpid()}" if ring is None else Path(ring).parent
            self.agent.failure_directory = place / "failures"
        return module

    def _make_modules_ddp_if_necessary(self) -> None:
        """Leave the module as it is: the agent averages its gradients itself, in one exchange an update."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register the agent's own optimizer, so that RLlib's state holds it."""
        self.register_optimizer(
            module_id=module_id,
            optimizer=self.agent.optimizer,
            params=[p for group in self.agent.optimizer.param_groups for p in group["params"]],
            lr_or_lr_schedule=self.agent.config.learning_rate,
        )

    def compute_loss_for_module(
        self,
        *,
        module_id: str,
        config: Any,
        batch: dict[str, Any],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        """Refuse RLlib's one-loss-per-call path: the agent's step also draws noise and moves its targets."""
        raise RuntimeError("DIPOLELearner steps its agent itself: call update_on(batches), not RLlib's update(batch)")

    def update_on(
        self, batches: Mapping[str, np.ndarray], batch_size: int, publish: bool = False
    ) -> tuple[UpdateReport, dict[str, Tensor] | None]:
        """Run one gradient step on each consecutive batch; of several learners, each on its share of the rows.

        Args:
            batches: The replay's arrays, each with leading dimension K * `batch_size`.
            batch_size: Rows of one gradient step.
            publish: Also return what acting needs, for the rollout workers.

        Returns:
            The report, and the policy's tensors (on the CPU) or None.

        Raises:
            NonFiniteError: Ten updates in a row were not finite; the batch is saved.
            RankLost: Another learner died.
        """
        start = time.perf_counter()
        parallel = self.agent.data_parallel
        shares = {name: _tensor(parallel.shard(array, batch_size)) for name, array in batches.items()}
        columns = {name: share.to(self.agent.device, non_blocking=True) for name, share in shares.items()}
        rows = batch_size // parallel.size
        num_updates = len(columns["rewards"]) // rows
        sums: dict[str, Tensor] = {}
        last: dict[str, Tensor] = {}
        for k in range(num_updates):
            batch = {name: column[k * rows : (k + 1) * rows] for name, column in columns.items()}
            last = self.agent.update(batch, diagnostics=k == num_updates - 1)
            for name, value in last.items():
                sums[name] = sums[name] + value if name in sums else value
        metrics = {name: float(value) for name, value in last.items()}
        metrics.update({name: float(total) / num_updates for name, total in sums.items() if "/loss" in name})
        policy = self.agent.policy_state() if publish else None
        report = UpdateReport(
            num_updates=num_updates,
            busy_s=time.perf_counter() - start,
            metrics=metrics,
        )
        return report, policy

    def fit_observations(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set what the agent normalizes observations with (see `Agent.fit_observations`)."""
        self.agent.fit_observations(mean.copy(), std.copy())

    def agent_state(self) -> dict[str, Tensor]:
        """Return the agent's complete state on the CPU, for a checkpoint."""
        return {name: tensor.detach().cpu() for name, tensor in self.agent.state_dict().items()}

    def load_agent_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly from a state returned by `agent_state`."""
        self.agent.load_state_dict(dict(state))

    def policy_state(self) -> dict[str, Tensor]:
        """Return what acting needs, on the CPU."""
        return self.agent.policy_state()


def _tensor(array: np.ndarray) -> Tensor:
    """Return `array` as a tensor; arrays from Ray's object store are read-only and are copied first."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
