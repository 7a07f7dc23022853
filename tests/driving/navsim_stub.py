"""NAVSIM v1.1 as far as an agent meets it: the names, fields and units of its interface, and nothing of its code."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from tests.driving.drives import Frame


class AbstractAgent(torch.nn.Module, ABC):
    def __init__(self, requires_scene: bool = False) -> None:
        super().__init__()
        self.requires_scene = requires_scene

    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def get_sensor_config(self) -> SensorConfig: ...

    @abstractmethod
    def initialize(self) -> None: ...


@dataclass
class SensorConfig:
    cam_f0: bool | list[int]
    cam_l0: bool | list[int]
    cam_l1: bool | list[int]
    cam_l2: bool | list[int]
    cam_r0: bool | list[int]
    cam_r1: bool | list[int]
    cam_r2: bool | list[int]
    cam_b0: bool | list[int]
    lidar_pc: bool | list[int]

    @classmethod
    def build_no_sensors(cls) -> SensorConfig:
        return SensorConfig(**{one.name: False for one in fields(SensorConfig)})

    def loaded(self, name: str, frame: int) -> bool:
        wanted = getattr(self, name)
        return wanted if isinstance(wanted, bool) else frame in wanted


@dataclass
class TrajectorySampling:
    time_horizon: float
    interval_length: float

    @property
    def num_poses(self) -> int:
        return int(self.time_horizon / self.interval_length)


@dataclass
class Trajectory:
    poses: np.ndarray
    trajectory_sampling: Any = None

    def __post_init__(self) -> None:
        self.trajectory_sampling = self.trajectory_sampling or TrajectorySampling(time_horizon=4, interval_length=0.5)
        assert self.poses.shape == (self.trajectory_sampling.num_poses, 3)


@dataclass
class EgoStatus:
    ego_pose: np.ndarray
    ego_velocity: np.ndarray
    ego_acceleration: np.ndarray
    driving_command: np.ndarray
    in_global_frame: bool = False


@dataclass
class Camera:
    image: np.ndarray | None = None
    sensor2lidar_rotation: np.ndarray | None = None
    sensor2lidar_translation: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    distortion: np.ndarray | None = None


@dataclass
class Cameras:
    cam_f0: Camera
    cam_l0: Camera
    cam_l1: Camera
    cam_l2: Camera
    cam_r0: Camera
    cam_r1: Camera
    cam_r2: Camera
    cam_b0: Camera


@dataclass
class AgentInput:
    ego_statuses: list[EgoStatus]
    cameras: list[Cameras]
    lidars: list[Any]


def agent_input(frames: Sequence[Frame], config: SensorConfig, sensors: Path, history: int = 4) -> AgentInput:
    """Return what NAVSIM shows an agent of a log's frames: float32, poses in the frame of the last of the history."""
    past = frames[:history]
    poses = np.array([[*one["ego2global_translation"][:2], heading(one["ego2global_rotation"])] for one in past])
    angle = -poses[-1, 2]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    local = poses - poses[-1]
    local[:, :2] = local[:, :2] @ turn.T
    local[:, 2] = np.arctan2(np.sin(local[:, 2]), np.cos(local[:, 2]))
    statuses = [
        EgoStatus(
            ego_pose=np.array(pose, dtype=np.float32),
            ego_velocity=np.array(one["ego_dynamic_state"][:2], dtype=np.float32),
            ego_acceleration=np.array(one["ego_dynamic_state"][2:], dtype=np.float32),
            driving_command=one["driving_command"],
        )
        for pose, one in zip(local, past, strict=True)
    ]
    cameras = [
        Cameras(**{name.lower(): camera(name, one, number, config, sensors) for name in one["cams"]})
        for number, one in enumerate(past)
    ]
    return AgentInput(statuses, cameras, [None] * history)


def camera(name: str, frame: Frame, number: int, config: SensorConfig, sensors: Path) -> Camera:
    if not config.loaded(name.lower(), number):
        return Camera()
    return Camera(image=np.array(Image.open(sensors / frame["cams"][name]["data_path"])))


def heading(rotation: np.ndarray) -> float:
    w, x, y, z = rotation / np.linalg.norm(rotation)
    return float(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2)))


@contextmanager
def installed() -> Iterator[None]:
    """Make the modules importable that an agent imports."""
    abstract, data = ModuleType("navsim.agents.abstract_agent"), ModuleType("navsim.common.dataclasses")
    abstract.AbstractAgent = AbstractAgent  # type: ignore[attr-defined]
    for one in (AgentInput, SensorConfig, Trajectory):
        setattr(data, one.__name__, one)
    modules = {name: ModuleType(name) for name in ("navsim", "navsim.agents", "navsim.common")}
    with patch.dict(sys.modules, {**modules, abstract.__name__: abstract, data.__name__: data}):
        yield
