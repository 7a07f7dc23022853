"""dipole_ray: Dichotomous Diffusion Policy Optimization, offline to online, on Ray.

The public names load their modules on first use, so that `import dipole_ray` stays instant and works
where torch or Ray are not needed (`dipole --help`, `dipole data inspect`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AgentConfig": "dipole_ray.agents.dipole",
    "DipoleAgent": "dipole_ray.agents.dipole",
    "DIPOLE": "dipole_ray.rllib.algorithm",
    "DIPOLEConfig": "dipole_ray.rllib.config",
    "Replay": "dipole_ray.replay.replay",
    "RunConfig": "dipole_ray.runs.config",
    "make_env": "dipole_ray.envs.make",
    "open_dataset": "dipole_ray.data.dataset",
    "start_ray": "dipole_ray.cluster",
}

__all__ = [
    "DIPOLE",
    "AgentConfig",
    "DIPOLEConfig",
    "DipoleAgent",
    "Replay",
    "RunConfig",
    "make_env",
    "open_dataset",
    "start_ray",
]

if TYPE_CHECKING:
    from dipole_ray.agents.dipole import AgentConfig, DipoleAgent
    from dipole_ray.cluster import start_ray
    from dipole_ray.data.dataset import open_dataset
    from dipole_ray.envs.make import make_env
    from dipole_ray.replay.replay import Replay
    from dipole_ray.rllib.algorithm import DIPOLE
    from dipole_ray.rllib.config import DIPOLEConfig
    from dipole_ray.runs.config import RunConfig


def __getattr__(name: str) -> Any:
    """Import the public name `name` from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dipole_ray' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
