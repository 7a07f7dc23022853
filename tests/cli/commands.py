"""`dipole ...` as a user runs it, in a process of its own, or in this one where the process is not the point."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from dipole_ray.cli import main

LAUNCH = "import sys; from dipole_ray.cli import main; sys.exit(main(sys.argv[1:]))"

SMALL: dict[str, Any] = {
    "name": "small",
    "env": {"id": "Pendulum-v1"},
    "agent": {
        "preset": "small",
        "hidden_dims": [16, 16],
        "batch_size": 16,
        "denoise_steps": 2,
        "omega": 1.0,
        "num_candidates": 2,
        "train_bc": True,
    },
    "training": {
        "offline_learner_steps": 60,
        "online_env_steps": 240,
        "updates_per_env_step": 0.5,
        "learner_steps_per_call": 10,
        "learner_steps_per_iteration": 20,
        "env_steps_per_iteration": 60,
    },
    "rollout": {"envs_per_worker": 2, "fragment_steps": 30},
    "learner": {"num_threads": 1},
    "evaluation": {"episodes": 2, "omegas": [0.0, 1.0], "candidates": [1, 2]},
    "tracking": {"mlflow": False},
}


def write_config(path: Path, **sections: Any) -> Path:
    """Write the small run's YAML, with the keys of `sections` on top of the section of that name."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(config))
    return path


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a command whose caches lie in `home`."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return {**kept, "OMP_NUM_THREADS": "1", "HOME": str(home), "RAY_AUTH_MODE": "disabled"}


def dipole(*words: str | Path, cwd: Path, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run `dipole WORDS` in the folder `cwd` and return how it ended."""
    command = [sys.executable, "-c", LAUNCH, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=timeout, check=False
    )


def dipole_here(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `dipole WORDS` in this process and the folder `cwd`: the same texts and status, without a start."""
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)  # pytest has configured logging, so that `main` cannot
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        # What the command sets in the environment, for its own children, is gone afterwards.
        with (
            patch.dict(os.environ, environment(cwd), clear=True),
            chdir(cwd),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            status: Any = main([str(word) for word in words])
    except SystemExit as ended:
        status = ended.code
    finally:
        logging.getLogger().removeHandler(handler)
    return subprocess.CompletedProcess(words, status or 0, out.getvalue(), err.getvalue())
