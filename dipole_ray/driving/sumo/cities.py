"""The road networks inside the installed wheel of eclipse-sumo, and which of them are for what."""

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipole_ray.errors import ConfigError, DipoleError

ATTRIBUTION = "Road networks (c) OpenStreetMap contributors, ODbL 1.0; traffic by Eclipse SUMO (EPL-2.0)"
SOURCE = "SUMO-OSM, not NAVSIM"


@dataclass(frozen=True, slots=True)
class City:
    """A road network."""

    name: str
    split: Literal["train", "validation", "test"]
    """never two for one city: what is learned in one has to hold in another"""
    network: str
    """its file below the folder of SUMO"""


CITIES = {
    city.name: city
    for city in (
        City("berlin", "train", "tools/game/DRT/osm.net.xml"),
        City("koenigs_wusterhausen", "train", "tools/game/A10KW/osm.net.xml"),
        City("ingolstadt", "validation", "tools/game/fkk_in/ingolstadt.net.xml.gz"),
        City("braunschweig", "test", "tools/game/bs3d/bs.net.xml"),
        City("braunschweig_junction", "test", "tools/game/fokr_bs_demo/fokr_bs.net.xml.gz"),
    )
}


def city(name: str) -> City:
    """Return a city by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in CITIES:
        known = ", ".join(f"{one.name} ({one.split})" for one in CITIES.values())
        near = difflib.get_close_matches(name, CITIES, n=1)
        hint = f"did you mean '{near[0]}'? There are" if near else "choose one of"
        raise ConfigError(f"no map {name!r:.40}; {hint} {known}")
    return CITIES[name]


def sumo_home() -> Path:
    """Return the folder of SUMO.

    Raises:
        DipoleError: It is not installed.
    """
    found = importlib.util.find_spec("sumo")
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or []]
    for place in places:
        if (place / "bin").is_dir():
            return place
    raise DipoleError(
        "recording scenes needs eclipse-sumo, not installed here: pip install 'dipole-ray[driving]', "
        "in a checkout pip install -e '.[driving]' (a download of 150 MB)"
    )
