"""Traffic by SUMO: who drives, rides and walks where, and what came of it every 0.5 s."""

import math
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow.csv
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dipole_ray.driving.log import FRAME_S
from dipole_ray.driving.sumo.cities import sumo_home
from dipole_ray.driving.sumo.network import Network
from dipole_ray.driving.vehicle import LENGTH, Array
from dipole_ray.errors import ConfigError, DipoleError, first_line

WARMUP_S = 150.0  # until cars are everywhere; their way takes about as long
STEP_S = 0.1
SIZES = {"vehicle": (LENGTH, 2.2, 1.7), "bicycle": (1.7, 0.65, 1.7), "pedestrian": (0.6, 0.6, 1.75)}
"""length, width and height; cars have that of the car which is judged, or it would touch its neighbours"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficConfig:
    """Who is on the road."""

    cars_per_km: float = 1.5
    """cars a kilometre of lane, on average and about; with 3.5 most scenes are queues, in which braking gets far"""
    bicycles_per_km: float = 0.6
    """bicycles a kilometre of lane"""
    pedestrians_per_km: float = 1.0
    """pedestrians a kilometre of lane; they cross where the network has crossings"""
    parked_per_km: float = 15.0
    """parked cars a kilometre of lane, beside roads of at most 60 km/h"""
    lane_drift: float = 0.2
    """how far drivers wander within their lane: SUMO's lcSigma, about metres"""

    def __post_init__(self) -> None:
        """Reject what is no traffic."""
        for name in ("cars_per_km", "bicycles_per_km", "pedestrians_per_km", "parked_per_km", "lane_drift"):
            value = getattr(self, name)
            if not 0 <= value <= 100:
                raise ConfigError(f"{name} is {value}; from 0 to 100 is possible")
        if self.cars_per_km == 0:
            raise ConfigError("cars_per_km is 0; scenes are recorded from cars, so some are needed")


@dataclass(frozen=True, slots=True)
class Presence:
    """Where something was at each of consecutive times 0.5 s apart."""

    kind: str
    first: int
    """number of the first time"""
    states: Array
    """(n, 5): x and y of the middle of its front and heading, in the world, speed, acceleration"""
    lanes: Sequence[str]
    """SUMO's lane at each time"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What happened."""

    network: Network
    count: int
    """times recorded"""
    present: dict[str, Presence]
    routes: dict[str, tuple[str, ...]]
    """edges of each car's way"""
    red: list[tuple[str, ...]]
    """at each time, the connectors with a red light"""


def simulate_traffic(network: Network, config: TrafficConfig, seed: int, seconds: float, folder: Path) -> Traffic:
    """Return what happens in `seconds` of traffic after the roads have filled.

    Args:
        network: The city.
        config: Who is on the road.
        seed: Decides everything.
        seconds: Time to record.
        folder: Where SUMO's files may lie.

    Raises:
        DipoleError: SUMO failed; with what it said.
    """
    end = WARMUP_S + seconds
    (folder / "routes.xml").write_text("\n".join(_demand(network, config, np.random.default_rng(seed), end)))
    lights = "".join(
        f'<timedEvent type="SaveTLSStates" source={quoteattr(one)} dest="lights.xml"/>' for one in network.signals
    )
    (folder / "lights.add.xml").write_text(f"<additional>{lights}</additional>")
    _run(network.path, folder, seed, end)
    present = _presences(folder / "fcd.csv", network.offset)
    count = round(seconds / FRAME_S)
    routes = _routes(folder / "vehicles.xml")
    return Traffic(network, count, present, routes, _red_lights(folder / "lights.xml", network, count))


def _demand(network: Network, config: TrafficConfig, random: np.random.Generator, end: float) -> Iterator[str]:
    """Yield the lines of a route file, in the order of departure."""
    length_km = sum(lane.baseline.length for lane in network.roads.lanes.values()) / 1000
    yield "<routes>"
    car, bicycle, _ = (SIZES[kind] for kind in ("vehicle", "bicycle", "pedestrian"))
    drift = f'lcSigma="{config.lane_drift}" minGapLat="0.4" latAlignment="center"'
    yield (
        f'<vType id="vehicle" length="{car[0]}" width="{car[1]}" carFollowModel="EIDM" {drift} '
        'speedFactor="normc(1,0.1,0.7,1.3)"/>'
    )
    yield f'<vType id="bicycle" vClass="bicycle" length="{bicycle[0]}" width="{bicycle[1]}" maxSpeed="5.5"/>'
    roads = _well_connected(network)
    weights = np.array([network.roads.roadblocks[network.blocks[edge]].polygon.area for edge in roads])
    weights /= weights.sum()
    both = [edge for edge in roads if edge in set(network.rides)]
    departures: list[tuple[float, str]] = []
    for kind, per_km, edges in (("vehicle", config.cars_per_km, roads), ("bicycle", config.bicycles_per_km, both)):
        number = round(per_km * length_km * end / WARMUP_S) if len(edges) > 1 else 0
        shares = weights if edges is roads else None
        for index, time_s in enumerate(np.sort(random.uniform(0, end, number))):
            start, goal = (edges[i] for i in random.choice(len(edges), 2, replace=False, p=shares))
            lane = 'departLane="best" departSpeed="desired"' if kind == "vehicle" else 'departLane="first"'
            text = f'<trip id="{kind}{index}" type="{kind}" depart="{time_s:.1f}" from="{start}" to="{goal}" {lane}/>'
            departures.append((time_s, text))
    number = round(config.pedestrians_per_km * length_km * end / WARMUP_S) if len(network.walks) > 1 else 0
    for index, time_s in enumerate(np.sort(random.uniform(0, end, number))):
        start, goal = (network.walks[i] for i in random.choice(len(network.walks), 2, replace=False))
        walk = f'<walk from="{start}" to="{goal}"/>'
        departures.append((time_s, f'<person id="pedestrian{index}" depart="{time_s:.1f}">{walk}</person>'))
    yield from (text for _, text in sorted(departures))
    yield "</routes>"


def _well_connected(network: Network) -> list[str]:
    """Return the edges from which every one of them can be reached."""
    edges = list(network.blocks)
    index = {edge: i for i, edge in enumerate(edges)}
    pairs = np.array([(index[start], index[end]) for start, end in network.joints]).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(edges), len(edges)))
    _, part = connected_components(graph, connection="strong")
    largest = np.bincount(part).argmax()
    return [edge for edge, one in zip(edges, part, strict=True) if one == largest]


def _run(network: Path, folder: Path, seed: int, end: float) -> None:
    home = sumo_home()
    words = [
        *(str(home / "bin" / "sumo"), "-n", str(network), "-r", "routes.xml", "-a", "lights.add.xml"),
        *("--begin", "0", "--end", f"{end}", "--step-length", f"{STEP_S}", "--seed", f"{seed % 2**31}"),
        *("--fcd-output", "fcd.csv", "--fcd-output.attributes", "x,y,angle,speed,acceleration,lane,edge"),
        *("--device.fcd.period", f"{FRAME_S}", "--device.fcd.begin", f"{WARMUP_S}", "--precision", "6"),
        *("--vehroute-output", "vehicles.xml", "--vehroute-output.write-unfinished"),
        *("--lateral-resolution", "0.8", "--ignore-route-errors", "--collision.action", "none"),
        *("--time-to-teleport", "90", "--time-to-teleport.remove", "--no-step-log", "--no-warnings"),
        *("--pedestrian.model", "striping", "--xml-validation", "never"),
    ]
    variables = {**os.environ, "SUMO_HOME": str(home), "PROJ_DATA": str(home / "data" / "proj")}
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("Error")] or [done.stderr]
        raise DipoleError(f"SUMO failed on {network.name} with exit status {done.returncode}: {first_line(said[0])}")


def _presences(path: Path, offset: Array) -> dict[str, Presence]:
    """Return what was where, from SUMO's table of floating car data."""
    options = pyarrow.csv.ParseOptions(delimiter=";")
    table = pyarrow.csv.read_csv(path, parse_options=options).to_pydict()
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: {"times": [], "states": [], "lanes": []})
    for prefix in ("vehicle", "person"):
        numbers = [table.get(f"{prefix}_{key}") for key in ("x", "y", "angle", "speed", "acceleration")]
        names, places = table.get(f"{prefix}_id"), table.get(f"{prefix}_lane") or table.get(f"{prefix}_edge")
        if names is None:
            continue
        for i, name in enumerate(names):
            if name:
                one = found[name]
                one["times"].append(round((table["timestep_time"][i] - WARMUP_S) / FRAME_S))
                one["states"].append([(column[i] or 0.0) if column else 0.0 for column in numbers])
                one["lanes"].append((places[i] if places else None) or "")
    presences = {}
    for name, one in found.items():
        states = np.array(one["states"])
        states[:, :2] += offset
        states[:, 2] = math.pi / 2 - np.deg2rad(states[:, 2])
        times = np.array(one["times"])
        # Something that was gone for a while, as a car that waited to be inserted, counts from when it was back.
        start = int(np.flatnonzero(np.diff(times, prepend=times[0] - 2) != 1)[-1])
        presences[name] = Presence(name.rstrip("0123456789"), int(times[start]), states[start:], one["lanes"][start:])
    return presences


def _routes(path: Path) -> dict[str, tuple[str, ...]]:
    return {
        vehicle.attrib["id"]: tuple(route.attrib["edges"].split())
        for vehicle in ElementTree.parse(path).getroot().iter("vehicle")
        if (route := vehicle.find("route")) is not None
    }


def _red_lights(path: Path, network: Network, count: int) -> list[tuple[str, ...]]:
    red: list[list[str]] = [[] for _ in range(count)]
    if not network.signals:
        return [()] * count
    for state in ElementTree.parse(path).getroot().iter("tlsState"):
        step = (float(state.attrib["time"]) - WARMUP_S) / FRAME_S
        index = round(step)
        if 0 <= index < count and abs(step - index) < 0.01:
            colours = state.attrib["state"]
            red[index] += [token for place, token in network.signals[state.attrib["id"]] if colours[place] in "rR"]
    return [tuple(one) for one in red]
