"""A driving policy of dipole_ray as an agent of NAVSIM v1.1, for its own evaluation and submission.

`dipole drive agent` copies this file to where NAVSIM's environment finds it. That environment has other versions of
Python and torch than dipole_ray needs, so the policy plans in a process of its own Python, which this agent starts and
asks: a line of JSON and the bytes of the pictures there, a line with the poses back. Written for Python 3.9.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import numpy as np
from navsim.agents.abstract_agent import AbstractAgent
from navsim.common.dataclasses import AgentInput, SensorConfig, Trajectory

FRAMES = 4  # that the policy looks back, the last of them now
CAMERAS = ("cam_l0", "cam_f0", "cam_r0")  # from the left
POSES = 8  # x, y and heading of the rear axle in the frame of now, 0.5 s apart


class DipoleAgent(AbstractAgent):  # type: ignore[misc]
    """Plans as `dipole evaluate` does with the same seed, and sees what NAVSIM gives to agents, nothing else."""

    def __init__(self, python: str, packages: str, sees_pictures: bool, settings: dict[str, Any]) -> None:
        """Remember what the process needs: its Python, the folder of dipole_ray, and the policy's settings."""
        super().__init__(requires_scene=False)
        self._command = [python, "-m", "dipole_ray.evaluation.planner", json.dumps(settings)]
        self._packages, self._sees_pictures = packages, sees_pictures
        self._process: Any = None

    def name(self) -> str:
        """Return the agent's name."""
        return "dipole"

    def get_sensor_config(self) -> SensorConfig:
        """Ask for the three cameras that the policy sees, now and not before, or for none."""
        config = SensorConfig.build_no_sensors()
        for camera in CAMERAS if self._sees_pictures else ():
            setattr(config, camera, [FRAMES - 1])
        return config

    def initialize(self) -> None:
        """Start the process that plans; RuntimeError with what it says where it cannot."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        pipe = subprocess.PIPE
        own = {**kept, "PYTHONPATH": self._packages}
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, env=own)
        self._answer()

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """Return the plan for what is seen."""
        statuses = agent_input.ego_statuses
        if len(statuses) != FRAMES:
            raise RuntimeError(f"{len(statuses)} frames of history; the policy looks back {FRAMES}, NAVSIM's default")
        pictures = []
        if self._sees_pictures:
            pictures = [np.asarray(getattr(agent_input.cameras[-1], name).image, np.uint8) for name in CAMERAS]
        head = {
            "motion": [[*one.ego_velocity.tolist(), *one.ego_acceleration.tolist()] for one in statuses],
            "history": [one.ego_pose.tolist() for one in statuses],
            "command": np.asarray(statuses[-1].driving_command).tolist(),
            "pictures": [one.shape for one in pictures],
        }
        if self._process is None:
            self.initialize()
        try:
            self._process.stdin.write(json.dumps(head).encode() + b"\n")
            for one in pictures:
                self._process.stdin.write(one.tobytes())
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, which is found where its answer is read
        poses = np.array(self._answer()["poses"], dtype=np.float64)
        if poses.shape != (POSES, 3):
            raise SystemExit(f"dipole: a plan of {poses.shape}, not of {POSES} poses; make the agent anew")
        return Trajectory(poses)

    def _answer(self) -> dict[str, Any]:
        """Return the next line of the process."""
        line = self._process.stdout.readline()
        if not line:
            # No error of one scene: NAVSIM would leave out this scene and all that follow, and average the rest.
            why = f"the process that plans has ended with status {self._process.wait()}; what it said is above"
            raise SystemExit(f"dipole: {why}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"dipole: {answer['error']}")
        return answer
