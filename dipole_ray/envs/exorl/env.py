"""ExORL's tasks as gymnasium environments: `exorl/walker-walk`, `exorl/jaco-reach_top_left` and nine more."""

from typing import Any

from dipole_ray.envs.control import ControlEnv
from dipole_ray.envs.exorl.tasks import Simulation, domain_of


class ExorlEnv(ControlEnv):
    """One task. Episodes are truncated after 1000 steps (jaco 250) and never terminate.

    Observations are those in ExORL's files. `info["physics"]` is the state of the simulation, float64, from which the
    reward of every task of the domain can be computed.
    """

    def __init__(self, env_id: str, max_episode_steps: int | None = None) -> None:
        """Load the task `env_id`, with `max_episode_steps` steps an episode (None: as many as ExORL's)."""
        self._simulation = Simulation(env_id)
        super().__init__(self._simulation.env)
        self.max_episode_steps = max_episode_steps or domain_of(env_id).episode_steps

    def _seed(self, seed: int) -> None:
        self._simulation.seed(seed)

    def _ends(self, step: Any) -> tuple[bool, bool]:
        return False, self._steps >= self.max_episode_steps

    def _info(self) -> dict[str, Any]:
        return {"physics": self._simulation.physics.state()}
