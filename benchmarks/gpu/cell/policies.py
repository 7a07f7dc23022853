"""What a trained agent acts with, saved as `dipole evaluate` reads it and packed into few files to bring home."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from dipole_ray import settings
from dipole_ray.agents.adapter_files import AGENT_FILE, split
from dipole_ray.agents.agent import Agent
from dipole_ray.columns import Schema
from dipole_ray.files.checkpoint import write_checkpoint

ENVIRONMENT = "cube-single-play-singletask-v0"


def save(run: Path, agent: Agent, schema: Schema) -> Path:
    """Write the acting networks as a checkpoint of the folder `run`; what only learns is left out."""
    state = {f"networks.{name}": tensor for name, tensor in agent.policy.policy_state().items()}
    state["generator"] = agent.generator.get_state()
    adapted = agent.networks.adapted
    files = {AGENT_FILE: state} if adapted is None else split(state, adapted.adapter_config, adapted.backbone_state())
    algorithm = {"agent": settings.to_mapping(agent.config), "env": {"id": ENVIRONMENT}}
    about = {"algorithm": algorithm, **schema.to_json(), "env_steps": 0}
    return write_checkpoint(run / "checkpoints", agent.learner_steps, files, about)


def pack(folders: Sequence[Path], root: Path, file: Path) -> None:
    """Write folders below `root` into one uncompressed file."""
    with tarfile.open(file, "w") as archive:
        for folder in folders:
            archive.add(folder, arcname=str(folder.relative_to(root)))


def unpack(file: Path, root: Path) -> None:
    """Put what was packed below `root`."""
    with tarfile.open(file) as archive:
        archive.extractall(root, filter="data")
