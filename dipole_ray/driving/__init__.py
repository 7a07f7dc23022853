"""Driving: plans of a car scored as NAVSIM scores them, by the PDM score v1.1.

A plan is poses of the car's rear axle; a scene is what surrounds it. `scene` says what a scene is and `scene_file`
reads one; `plans`, `profiles` and `simulation` drive a plan; `area`, `collisions` and `comfort` judge the drive;
`score` puts it together; `closed` plans the reference that progress is compared with.
Scenes come from drives: `log` (with `pickles`) is what NAVSIM keeps of one, `roads` and `route` the map (`geopackage`)
and the way on it, `tracks` what moves; `recorded` makes scenes of them, `metric_cache` reads NAVSIM's, and `container`
(with `rows`) keeps them on disk; `sumo` records drives where there are none. `curation` and `anchors` say what a scene
and a score are worth; `raster` and `cameras` are what a policy may see.
Shapes: `B` plans, `K` poses of a plan, `T` = 41 steps of 0.1 s, `P` polygons of a map, `M` objects.
"""

from importlib.util import find_spec

from dipole_ray.errors import DipoleError

_needed = {"shapely": "shapely", "scipy": "scipy", "PIL": "pillow"}
_missing = [package for name, package in _needed.items() if find_spec(name) is None]
if _missing:
    raise DipoleError(
        f"driving needs {' and '.join(_missing)}, not installed here: pip install 'dipole-ray[driving]', "
        "in a checkout pip install -e '.[driving]'"
    )
