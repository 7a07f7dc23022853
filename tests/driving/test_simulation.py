"""The driven states against the regulator written out with matrices, step by step, as it is published."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("shapely")

from dipole_ray.driving.plans import reference_poses
from dipole_ray.driving.simulation import simulate
from dipole_ray.driving.vehicle import Array
from tests.driving.scenes import straight, wild_plans

DT, WHEELBASE = 0.1, 3.089


def wrapped(angle: float) -> float:
    return float(np.arctan2(np.sin(angle), np.cos(angle)))


def profiles(poses: Array) -> tuple[Array, Array]:
    """Return speeds and curvatures (40,) of a reference (41, 3), by pseudo-inverses of the full problems."""
    moved, heading, count = np.diff(poses, axis=0), poses[:-1, 2], len(poses) - 1
    design = np.zeros((2 * count, count))
    for i in range(count):
        steps = [DT, *[DT**2] * i, *[0.0] * (count - 1 - i)]
        design[2 * i : 2 * i + 2] = np.outer([np.cos(heading[i]), np.sin(heading[i])], steps)
    rough = np.zeros((count - 2, count))
    for i in range(count - 2):
        rough[i, i + 1] = -1
    rough[count - 3, count - 1] = 1
    solution = np.linalg.pinv(design.T @ design + 1e-4 * rough.T @ rough) @ design.T @ moved[:, :2].ravel()
    speed = solution[0] + np.concatenate([[0.0], np.cumsum(solution[1:] * DT)])
    design = np.tri(count)
    design[:, 0] = speed * DT
    design[1:, 1:] *= speed[1:, None] * DT**2
    penalty = 1e-2 * np.eye(count)
    penalty[0, 0] = 1e-10
    turned = np.array([wrapped(angle) for angle in moved[:, 2]])
    solution = np.linalg.pinv(design.T @ design + penalty) @ design.T @ turned
    return speed, solution[0] + np.concatenate([[0.0], np.cumsum(solution[1:] * DT)])


def controls(state: Array, pose: Array, target: float, curvature: Array) -> tuple[float, float]:
    """Return acceleration and steering rate."""
    x, y, heading, speed, steer = *state[:4], state[7]
    if target <= 0.2 and speed <= 0.2:
        return -0.5 * (speed - target), 0.0
    acceleration = -10 * (speed - target) / 11
    dx, dy = x - pose[0], y - pose[1]
    error = np.array([-dx * np.sin(pose[2]) + dy * np.cos(pose[2]), wrapped(heading - pose[2]), steer])
    effect, drift, change = np.zeros(3), np.zeros(3), np.eye(3)
    for k in range(10):
        v = speed + acceleration * k * DT
        matrix = np.array([[1, v * DT, 0], [0, 1, v * DT / WHEELBASE], [0, 0, 1]])
        change, effect = matrix @ change, matrix @ effect + [0, 0, DT]
        drift = matrix @ drift + [0, -v * curvature[k] * DT, 0]
    end = change @ error + drift
    end[1:] = [wrapped(angle) for angle in end[1:]]
    cost = np.diag([1.0, 10.0, 0.0])
    return acceleration, float(-(effect @ cost @ end) / (effect @ cost @ effect + 1))


def driven(poses: Array, ego: Array) -> Array:
    """Return the states (41, 11) of one plan."""
    states = [ego]
    speeds, curvatures = profiles(poses)
    for step in range(40):
        last = min(step + 10, 39)
        window = [*curvatures[step:last], *[curvatures[last]] * (10 - last + step)]
        state = states[-1]
        acceleration, steer_rate = controls(state, poses[step], speeds[last], np.array(window))
        x, y, heading, speed, _, old, _, steer, _, yaw, _ = state
        new = old + DT / (DT + 0.2) * (acceleration - old)
        rate = DT / (DT + 0.05) * DT * steer_rate / DT
        after, turned = speed + new * DT, float(np.clip(steer + rate * DT, -np.pi / 3, np.pi / 3))
        turn = wrapped(heading + speed * np.tan(steer) / WHEELBASE * DT)
        yaw_rate = after * np.tan(turned) / WHEELBASE
        place = [x + speed * np.cos(heading) * DT, y + speed * np.sin(heading) * DT, turn]
        states.append(np.array([*place, after, 0, new, 0, turned, rate, yaw_rate, (yaw_rate - yaw) / DT]))
    return np.array(states)


@pytest.mark.parametrize("speed", [0.0, 0.15, 3.0, 12.0])
def test_the_car_is_driven_as_the_published_regulator_drives_it(speed: float) -> None:
    ego = np.array([3e5, 4e6, 3.1, speed, 0.0, 0.3, 0.1, 0, 0, 0, 0])
    plans = np.concatenate([wild_plans(4, 6, max(speed, 1.0)), [straight(0.0), straight(speed)]])
    poses = reference_poses(plans, ego, 1_600_000_000_000_111)
    found = simulate(poses, ego)
    for reference, states in zip(poses, found, strict=True):
        expected = driven(reference, ego)
        error = states - expected
        error[:, 2] = np.arctan2(np.sin(error[:, 2]), np.cos(error[:, 2]))
        np.testing.assert_allclose(error, 0.0, atol=1e-6)


def test_a_plan_becomes_poses_every_tenth_of_a_second() -> None:
    """The car's own pose comes first, headings go the short way round, and times are whole microseconds."""
    ego = np.zeros(11)
    ego[:3] = 100.0, 50.0, np.pi - 0.05
    plan = np.array([[[2.0, 0.0, 0.1], *[[4.0, 1.0, 0.2]] * 7]])
    poses = reference_poses(plan, ego, 0)[0]
    assert poses.shape == (41, 3)
    np.testing.assert_allclose(poses[0], ego[:3])
    np.testing.assert_allclose(poses[5], [100 + 2 * np.cos(ego[2]), 50 + 2 * np.sin(ego[2]), -np.pi + 0.05], atol=1e-9)
    np.testing.assert_allclose(poses[1, 2], np.pi - 0.03, atol=1e-9)
    np.testing.assert_allclose(poses[10:, 2], -np.pi + 0.15, atol=1e-9)
    late = reference_poses(plan, ego, 1_600_000_000_000_111)[0]
    assert 0 < np.abs(late - poses).max() < 1e-5
