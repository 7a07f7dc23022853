"""Folders of scenes made by hand, for whatever learns from them, and policies that have learned nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.dipole import DipoleConfig
from dipole_ray.driving.container import Origin, finish_folder, shard_bytes, start_folder, write_shard
from dipole_ray.driving.log import parsed_frames
from dipole_ray.driving.observations import schema_of
from dipole_ray.driving.recorded import RecordedScene, scene_on_map
from dipole_ray.envs.make import EnvConfig
from dipole_ray.files.checkpoint import write_checkpoint
from dipole_ray.settings import from_mapping, to_mapping
from tests.driving.drives import drive, town


def made_scene(token: str, log: str, **changes: Any) -> RecordedScene:
    """Return a scene of a drive through the town."""
    frames = drive(**changes)
    frames[3] |= {"token": token, "log_name": log}
    return scene_on_map(parsed_frames(frames, log), town())


def made_folder(folder: Path, scenes: int, files: int = 2) -> Path:
    """Make a folder of scenes that differ in speed and place, each log of two scenes, in so many files."""
    origin = Origin("made by hand", "nobody", {"scenes": scenes})
    start_folder(folder, origin)
    all_of_them = [
        made_scene(f"{folder.name}-{i}", f"{folder.name}-log{i // 2}", speed=4.0 + 0.7 * i, start=20.0 + 3 * i)
        for i in range(scenes)
    ]
    shards = [write_shard(folder, f"part{i}", shard_bytes(all_of_them[i::files])) for i in range(files)]
    finish_folder(folder, origin, shards)
    return folder


def saved_policy(folder: Path, scenes: Path, observation: str, actions: str = "poses", **agent: Any) -> Path:
    """Write the checkpoint of a fresh policy that drives, whose fields differ, as a run's."""
    given = {"advantage": "group", "num_candidates": 1, "omega": 1.0, "hidden_dims": [16, 16], "denoise_steps": 3}
    config = from_mapping(DipoleConfig, {**given, **agent}, "agent")
    driving = {"scenes": [str(scenes)], "observation": observation, "actions": actions}
    env = from_mapping(EnvConfig, {"id": "drive", "driving": driving}, "env")
    schema = schema_of(observation, actions).as_seen
    made = make_agent(config, schema, seed=0)
    if made.networks.adapted is not None:
        made.clone(is_cloning=True)  # or its backbone would be the fresh one
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh heads end in zeros, and see nothing
        for weight in made.networks.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=random)
    metadata = {
        "algorithm": {"agent": to_mapping(config), "env": to_mapping(env)},
        **schema.to_json(),
        "env_steps": 0,
    }
    write_checkpoint(folder / "checkpoints", 1, {"agent": made.state_dict()}, metadata)
    return folder
