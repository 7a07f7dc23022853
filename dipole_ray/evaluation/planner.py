"""Plans for scenes that come one by one through a pipe, of which a policy sees no more than NAVSIM shows an agent.

`python -m dipole_ray.evaluation.planner SETTINGS` is what `navsim_agent` starts in the user's own checkout of NAVSIM.
First it says a line, `{"ready": true}` or `{"error": why}`. A request is a line of JSON with `motion` (4, 4), `history`
(4, 3), the one-hot `command` and the shapes of the `pictures`, and then the pictures' bytes; the answer is a line with
8 `poses` or an `error`.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image

from dipole_ray.agents.config import AgentConfig
from dipole_ray.driving.actions import plans_of
from dipole_ray.driving.cameras import VIEWS, resized
from dipole_ray.driving.encoders import picture_encoder
from dipole_ray.driving.log import HISTORY, command_of
from dipole_ray.driving.observations import status_of
from dipole_ray.driving.prompt import prompt_of
from dipole_ray.driving.vehicle import Array
from dipole_ray.envs.make import EnvConfig
from dipole_ray.envs.observations import stacked
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import ConfigError, DipoleError
from dipole_ray.evaluation.batches import Batches
from dipole_ray.evaluation.cells import Cell, EvalConfig, chosen_cell
from dipole_ray.evaluation.plans import drawn_actions
from dipole_ray.serving.policy import load_policy
from dipole_ray.settings import from_mapping

PICTURED = ("tiny", "large")
"""Observations that are made of pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannerConfig:
    """A policy, and how it plans."""

    run: str
    """Folder of a run, or of a checkpoint."""
    omega: float | None = None
    """Greediness; the run's own if none is given."""
    candidates: int | None = None
    """Plans drawn for a scene, of which the best is taken; the run's own if none is given."""
    steps: int | None = None
    """Steps of the flow's solver; the run's own if none are given."""
    seed: int = 0
    """Of the noise: plans are those of an evaluation with this seed."""
    weights: str | None = None
    """Folder of the encoder's weights, for a policy that sees by `large`."""
    encoder: str | None = None
    """Checksum of the encoder that the policy learned with."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it computes."""


def cell_of(agent: AgentConfig, omega: float | None, candidates: int | None, seed: int) -> Cell:
    """Return the way to act that an agent's own config has, but for what is given; ConfigError as an evaluation's."""
    chosen = chosen_cell(agent)
    found = replace(
        chosen,
        omega=chosen.omega if omega is None else omega,
        candidates=chosen.candidates if candidates is None else candidates,
    )
    EvalConfig(omegas=(found.omega or 0.0,), candidates=(found.candidates,), seed=seed)
    return found


class Planner:
    """Plans for one scene at a time, each plan that of an evaluation which sees the same."""

    def __init__(self, config: PlannerConfig) -> None:
        """Load the policy, and the encoder that it sees by.

        Raises:
            ConfigError: It drives not, sees more than an agent may, or its encoder's weights are missing or others.
            CheckpointError: There is no such policy.
        """
        acting: dict[str, Any] = {} if config.steps is None else {"denoise_steps": config.steps}
        trained = load_policy(config.run, config.device, **acting)
        self.kind = _visible(config.run, trained.env)
        if (config.candidates or 1) > 1 and not trained.policy.config.has_critic:
            raise ConfigError(f"candidates {config.candidates}: this policy has nothing that could choose; give 1")
        self._cell = cell_of(trained.policy.config, config.omega, config.candidates, config.seed)
        self._acting, self._seed = Batches(trained.policy), config.seed
        weights = None if config.weights is None else Path(config.weights)
        self._encoder = None
        if self.kind in PICTURED:
            self._encoder = picture_encoder(self.kind, weights, config.device)
            if config.encoder is not None and self._encoder.identity != config.encoder:
                both = f"{config.encoder[:12]}, and these are of {self._encoder.identity[:12]}"
                raise ConfigError(f"--weights {weights}: the policy learned with encoder {both}; give the same weights")
        elif weights is not None:
            raise ConfigError(f"--weights {weights}: a policy that observes '{self.kind}' has no encoder; leave it out")

    def __call__(self, motion: Array, history: Array, command: str, pictures: Sequence[Array] = ()) -> Array:
        """Return the plan (8, 3): poses 0.5 s apart in the frame of the rear axle now.

        Args:
            motion: (4, 4) vx, vy, ax, ay at -1.5, -1, -0.5 and 0 s.
            history: (4, 3) poses at those times.
            command: One of COMMANDS.
            pictures: Those of the cameras of VIEWS, (height, width, 3) uint8 each, for a policy that sees some.
        """
        observation = stacked([self._observed(motion, history, command, pictures)])
        return plans_of(drawn_actions(self._acting, observation, [self._cell], seed=self._seed)[0, 0, 0])

    def _observed(self, motion: Array, history: Array, command: str, pictures: Sequence[Array]) -> Any:
        status = status_of(motion, history, command)
        if self._encoder is None:
            return status
        seen = [resized(Image.fromarray(one), self._encoder.cameras) for one in pictures]
        context = self._encoder(np.stack(seen)[None], [prompt_of(motion, command)])[0]
        return {"ego": status, "context": context}


def _visible(run: str, env: EnvConfig) -> str:
    """Return the observation; ConfigError where the policy needs what NAVSIM shows to no agent."""
    if env.id != DRIVE:
        raise ConfigError(f"{run}: a policy for '{env.id}', which does not drive; give a run of env.id=drive")
    kind, seen = env.driving.observation, "an agent sees its own motion, the command and its sensors"
    if kind not in ("status", *PICTURED):
        found = f"the policy observes '{kind}', made of the map and of who is around"
        remedy = "train one with env.driving.observation=large, or status"
        raise ConfigError(f"{run}: {found}, which NAVSIM gives to no agent: {seen}; {remedy}")
    if env.driving.actions != "poses":
        found = f"the policy's actions are '{env.driving.actions}', said along the route's centreline"
        remedy = "train one with env.driving.actions=poses"
        raise ConfigError(f"{run}: {found}, which NAVSIM gives to no agent: {seen}; {remedy}")
    return kind


def answered(planner: Planner, head: dict[str, Any], stream: BinaryIO) -> Array:
    """Return the plan of a request whose pictures follow in a stream.

    Raises:
        DipoleError: It is no request of this version.
        ValueError: It is damaged.
    """
    shapes = [tuple(map(int, shape)) for shape in head["pictures"]]
    pictures = [
        np.frombuffer(stream.read(math.prod(shape)), np.uint8).reshape(shape) for shape in shapes
    ]  # read in any case, or the next request would begin in them
    motion, history = np.array(head["motion"], dtype=np.float64), np.array(head["history"], dtype=np.float64)
    if motion.shape != (HISTORY, 4) or history.shape != (HISTORY, 3):
        found = f"found {motion.shape} and {history.shape}"
        raise ConfigError(f"motion ({HISTORY}, 4) and history ({HISTORY}, 3) are needed, {found}; make the agent anew")
    wanted = len(VIEWS) if planner.kind in PICTURED else 0
    if len(shapes) != wanted:
        raise ConfigError(f"{wanted} pictures are needed, found {len(shapes)}; make the agent anew")
    return planner(motion, history, command_of(head["command"]), pictures)


def main(settings: str) -> int:
    """Answer requests on standard input until it ends; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        planner = Planner(from_mapping(PlannerConfig, json.loads(settings), "agent"))
    except DipoleError as error:
        say({"error": str(error)})
        return 2
    if planner.kind not in PICTURED:
        torch.set_num_threads(1)  # NAVSIM has a worker a core, each with a process like this
    say({"ready": True})
    while line := sys.stdin.buffer.readline():
        try:
            say({"poses": answered(planner, json.loads(line), sys.stdin.buffer).tolist()})
        except (DipoleError, ValueError) as error:
            say({"error": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
