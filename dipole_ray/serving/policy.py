"""A trained policy from a checkpoint: torch and the environment's config, no Ray."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dipole_ray import settings
from dipole_ray.agents.adapter_files import holds_backbone, join
from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dipole import DipoleConfig
from dipole_ray.agents.policy import Policy
from dipole_ray.agents.precision import require_device
from dipole_ray.columns import Schema
from dipole_ray.envs.make import EnvConfig
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import entries_of, newest_valid, read_checkpoint
from dipole_ray.files.place import absolute

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedPolicy:
    """A policy as a checkpoint left it, and what it was trained for."""

    policy: Policy
    """Acts with `sample_actions`, on observations less the offset."""
    env: EnvConfig
    """The environment it was trained in; what `make_env` makes of it has `observed` and `unmap`, from the environment's
    own observations to the policy's, and from the policy's actions to the environment's own."""
    path: Path
    """The checkpoint's folder."""
    learner_steps: int
    env_steps: int
    """Updates and environment steps that it had."""
    acting: Mapping[str, Any]
    """Settings of the agent's that were put in the place of the saved ones."""

    def driving_in(self, scenes: Sequence[str]) -> "TrainedPolicy":
        """Return the same policy, of which evaluations drive in other scenes; ConfigError if it does not drive."""
        if self.env.id != DRIVE:
            raise ConfigError(f"scenes are given, and '{self.env.id}' has none; leave them out")
        driving = replace(self.env.driving, validation=tuple(scenes))
        return replace(self, env=replace(self.env, driving=driving))


def load_policy(run: str | Path, device: str | torch.device = "cpu", **acting: Any) -> TrainedPolicy:
    """Load what acts from a run's newest valid checkpoint, or from a checkpoint's folder; CheckpointError if none.

    Neither the dataset nor the online rows need to be there. `acting` are settings of the agent's that it is to act
    with instead of those that it was trained with: `denoise_steps`, `solver`, `num_candidates`, `omega`.
    """
    require_device(device)
    run = absolute(run)
    path = newest_valid(run / "checkpoints") if (run / "checkpoints").is_dir() else run
    if path is None or not path.is_dir():
        raise CheckpointError(f"{run}: no checkpoint there; give a run folder that 'dipole train' printed")
    checkpoint = read_checkpoint(path)
    metadata = checkpoint.metadata
    with entries_of(checkpoint):
        plain, env_steps = metadata["algorithm"], int(metadata["env_steps"])
        config = settings.from_mapping(AgentConfig, plain["agent"], "agent")
        env = settings.from_mapping(EnvConfig, {"observation_offset": {}, **plain["env"]}, "env")
        state = join(checkpoint.tensors)
        try:
            schema = Schema.from_json(metadata)
        except ConfigError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
    config = settings.from_mapping(AgentConfig, {**settings.to_mapping(config), **acting}, "agent")
    # Before any memory is taken for networks that the file cannot hold.
    observation_dim = schema.observation_dim if schema.is_flat else 0  # what an encoder makes of it is not known yet
    widths = (observation_dim + schema.action_dim, *config.hidden_dims)
    members, held = config.num_critics, sum(tensor.numel() for tensor in state.values())
    if isinstance(config, DipoleConfig) and not config.has_targets:
        members, elsewhere = int(config.backbone.network == "mlp"), config.backbone.path
        if elsewhere is not None and not holds_backbone(state) and Path(elsewhere).is_file():
            held += Path(elsewhere).stat().st_size // 2  # bytes of the smallest number
    weights = members * sum(before * after for before, after in pairwise(widths))
    if weights > held:
        raise CheckpointError(
            f"{checkpoint.path}: its settings describe networks of at least {weights} weights, which it does not hold; "
            "use another checkpoint"
        )
    if env.observation_offset:
        _log.warning(
            "%s takes observations less the offset %s, which environments made of its config subtract; a script of "
            "yours does by make_env(load_policy(...).env).observed(observation)",
            run,
            env.observation_offset,
        )
    if isinstance(config, DipoleConfig) and holds_backbone(state):  # whatever the one lay in that it was cloned from
        config = replace(config, backbone=replace(config.backbone, path=None))
    policy = make_policy(config, schema, seed=0, device=device)
    policy.load_agent_state(state)
    return TrainedPolicy(
        policy=policy,
        env=env,
        path=checkpoint.path,
        learner_steps=checkpoint.learner_steps,
        env_steps=env_steps,
        acting=acting,
    )
