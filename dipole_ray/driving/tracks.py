"""What moves and stands around the car every 0.1 s, from what a log says of it every 0.5 s."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from dipole_ray.driving.log import AGENTS, FRAME_S, LogFrame
from dipole_ray.driving.plans import STEP_S
from dipole_ray.driving.scene import FRAMES, Frame, SceneObject
from dipole_ray.driving.vehicle import Array, corners, turned, wrap_evenly


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The frames of a scene, and what is known of the objects in them."""

    frames: tuple[Frame, ...]
    objects: dict[str, SceneObject]
    kinds: dict[str, str]
    """vehicle, pedestrian and so on, by token"""


def occupancy(now_and_after: Sequence[LogFrame]) -> Occupancy:
    """Return what is where at 51 times 0.1 s apart, interpolated between 11 frames 0.5 s apart.

    A track that only one frame has stands there all the time; one that comes back is interpolated over the gap; nothing
    goes on beyond its last frame. All that is as NAVSIM's metric cache has it.
    """
    seen: dict[str, list[tuple[float, Array]]] = defaultdict(list)
    first: dict[str, tuple[str, Array]] = {}
    for index, frame in enumerate(now_and_after):
        states = world_states(frame)
        for track, kind, state, box in zip(frame.tracks, frame.kinds, states, frame.boxes, strict=True):
            seen[track].append((index * FRAME_S, state))
            first.setdefault(track, (kind, box[3:5]))
    times = np.arange(FRAMES) * STEP_S
    present = np.zeros((len(seen), FRAMES), dtype=bool)
    states = np.zeros((len(seen), FRAMES, 5))
    for row, (track, known) in enumerate(seen.items()):
        present[row], states[row] = _interpolated(
            np.array([t for t, _ in known]), np.array([s for _, s in known]), times
        )
        if first[track][0] not in AGENTS:
            states[row, :, 3:] = 0.0
    sizes = np.array([size for _, size in first.values()]).reshape(-1, 1, 2)
    boxes = shapely.polygons(corners(states[..., :2], states[..., 2], sizes[..., 0], sizes[..., 1]))
    tokens = list(seen)
    frames = tuple(
        Frame([tokens[i] for i in np.flatnonzero(there).tolist()], boxes[there, step])
        for step, there in enumerate(present.T)
    )
    objects = {}
    for row, token in enumerate(tokens):
        _, _, heading, vx, vy = states[row, int(present[row].argmax())].tolist()
        objects[token] = SceneObject(first[token][0] in AGENTS, float(np.hypot(vx, vy)), heading)
    return Occupancy(frames, objects, {token: kind for token, (kind, _) in first.items()})


def world_states(frame: LogFrame) -> Array:
    """Return x, y, heading, vx and vy in the world (M, 5) of a frame's boxes."""
    places = turned(frame.boxes[:, :2], frame.pose[2]) + frame.pose[:2]
    heading = wrap_evenly(frame.boxes[:, 6] + frame.pose[2])
    return np.column_stack([places, heading, turned(frame.velocities, frame.pose[2])])


def frame_boxes(frame: LogFrame) -> Frame:
    """Return the places that are occupied in one frame of a log."""
    states = world_states(frame)
    boxes = shapely.polygons(corners(states[:, :2], states[:, 2], frame.boxes[:, 3], frame.boxes[:, 4]))
    return Frame(frame.tracks, boxes)


def _interpolated(knots: Array, known: Array, times: Array) -> tuple[Array, Array]:
    """Return whether a track is there at each time (T,), and its states (T, 5)."""
    if len(knots) == 1:
        return np.ones(len(times), dtype=bool), np.repeat(known, len(times), axis=0)
    known = known.copy()
    known[:, 2] = np.unwrap(known[:, 2])
    after = np.clip(np.searchsorted(knots, times), 1, len(knots) - 1)
    span = (knots[after] - knots[after - 1])[:, None]
    states = (known[after] - known[after - 1]) / span * (times - knots[after - 1])[:, None] + known[after - 1]
    states[:, 2] = wrap_evenly(states[:, 2])
    return (times >= knots[0]) & (times <= knots[-1]), states
