"""A run of the explorer: episode after episode, each on the disk with the explorer's state before the next begins."""

from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from dipole_ray.agents.state import restore_generator
from dipole_ray.collect.episode import Columns, exorl_file, play_exorl, write_columns
from dipole_ray.collect.rnd import Explorer, ExplorerConfig
from dipole_ray.data.sources.exorl import read_arrays
from dipole_ray.data.sources.npz import read_headers
from dipole_ray.envs.exorl.tasks import Domain, primary_task
from dipole_ray.envs.make import make_env
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.errors import CheckpointError, DatasetError
from dipole_ray.files.durable import replacing
from dipole_ray.progress import Progress

STATE = "explorer.safetensors"


class Experience:
    """The finished episodes, at most `capacity`, in memory; batches are drawn from all of them alike."""

    def __init__(self, domain: Domain, capacity: int) -> None:
        self.domain, self.capacity = domain, capacity
        self._rows = domain.episode_steps + 1
        self._observations = torch.zeros(capacity * self._rows, domain.observation_dim)
        self._actions = torch.zeros(capacity * self._rows, domain.action_dim)
        self.episodes = 0

    def add(self, columns: Columns) -> None:
        """Add an episode in the layout of its file."""
        place = slice(self.episodes * self._rows, (self.episodes + 1) * self._rows)
        self._observations[place] = torch.from_numpy(columns["observation"])
        self._actions[place] = torch.from_numpy(columns["action"])
        self.episodes += 1

    def sample(self, batch_size: int, n_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return observations (B, O), the actions (B, A) taken there, and the observations `n_step` steps later."""
        episodes = torch.randint(self.episodes, (batch_size,), generator=generator)
        starts = torch.randint(self._rows - n_step, (batch_size,), generator=generator)
        rows = episodes * self._rows + starts
        # A row's action is the one that led to it.
        return self._observations[rows], self._actions[rows + 1], self._observations[rows + n_step]


def explore(
    domain: Domain, count: int, seed: int, folder: Path, *, config: ExplorerConfig | None = None, progress: bool = True
) -> None:
    """Have `count` episodes in `folder`, continuing after the last one that was saved with the explorer's state.

    The continued run equals the uninterrupted one bit for bit: networks, optimisers, random numbers and the episodes
    it learns from are all restored, and an episode starts from its own seed.

    Raises:
        DatasetError: If the saved state or an episode it goes with is damaged or missing.
    """
    explorer = Explorer(domain.observation_dim, domain.action_dim, seed, config or ExplorerConfig())
    experience = Experience(domain, count)
    _restore(explorer, experience, folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and several seeds may run side by side
    steps = domain.episode_steps
    bar = Progress(f"explore {domain.name}", count * steps, completed=experience.episodes * steps) if progress else None
    try:
        with closing(make_env(primary_task(domain.name))) as env, bar or nullcontext():
            for index in range(experience.episodes, count):
                start = np.random.SeedSequence(seed, spawn_key=(index,))
                columns = _episode(explorer, experience, env, start, bar)
                write_columns(exorl_file(folder, index, steps), columns)
                experience.add(columns)
                # Killed in between, the next run plays this episode again, with the same result.
                _save(explorer, index + 1, folder)
    finally:
        torch.set_num_threads(threads)


def _episode(
    explorer: Explorer, experience: Experience, env: StandardEnv, seed: np.random.SeedSequence, bar: Progress | None
) -> Columns:
    config, domain = explorer.config, experience.domain
    is_seeding = experience.episodes * domain.episode_steps < config.seed_steps
    errors: list[float] = []

    def act(step: int, observation: np.ndarray) -> np.ndarray:
        if bar is not None and step % 50 == 49:  # drawing the bar at every step would take time
            bar.advance(50)
        if is_seeding:
            return (torch.rand(domain.action_dim, generator=explorer.generator) * 2.0 - 1.0).numpy()
        action = explorer.act(torch.from_numpy(observation))
        if step % config.update_every == 0:
            batch = experience.sample(config.batch_size, config.n_step, explorer.generator)
            errors.append(explorer.update(*batch))
        return action.numpy()

    columns = play_exorl(env, seed, domain.episode_steps, act)
    if bar is not None:
        novelty = float(np.mean(errors)) if errors else None
        bar.advance(domain.episode_steps % 50, episode_return=float(columns["reward"].sum()), novelty=novelty)
    return columns


def _save(explorer: Explorer, episodes: int, folder: Path) -> None:
    """Write the state after `episodes` episodes over the one before."""
    tensors = explorer.tensors() | {"generator": explorer.generator.get_state(), "episodes": torch.tensor(episodes)}
    with replacing(folder / STATE) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def _restore(explorer: Explorer, experience: Experience, folder: Path) -> None:
    """Put explorer and experience where the saved state was taken."""
    path = folder / STATE
    if not path.exists():
        return
    again = f"remove {folder} or collect with --overwrite to start from the beginning"
    try:
        tensors = load(path.read_bytes())
        episodes, generator = int(tensors.pop("episodes")), tensors.pop("generator")
        explorer.load(tensors)
        restore_generator(explorer.generator, generator)
    except (SafetensorError, KeyError, ValueError, CheckpointError) as error:
        raise DatasetError(f"{path}: cannot be continued from ({error}); {again}") from error
    domain = experience.domain
    dims = {"observation": domain.observation_dim, "action": domain.action_dim}
    for index in range(min(episodes, experience.capacity)):
        path = exorl_file(folder, index, domain.episode_steps)
        headers = read_headers(path)
        for name, dim in dims.items():
            found, expected = headers[name].shape if name in headers else None, (domain.episode_steps + 1, dim)
            if found != expected:
                raise DatasetError(f"{path}: array '{name}' has shape {found}, expected {expected}; {again}")
        experience.add(read_arrays(path, list(dims)))
