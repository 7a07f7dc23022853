"""Longitude and latitude to metres: the transverse Mercator projection of the UTM zones on WGS 84.

Krueger's series to the sixth order in the third flattening: below a micrometre within a zone (Karney, "Transverse
Mercator with an accuracy of a few nanometers", J. Geodesy 85, 2011, eqs. 7-9 and 35).
"""

import re

import numpy as np

from dipole_ray.driving.vehicle import Array

_F = 1 / 298.257223563
_N = _F / (2 - _F)
_E = np.sqrt(_F * (2 - _F))
_RADIUS = 6378137.0 / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64 + _N**6 / 256)
_ALPHA = (
    _N / 2 - 2 * _N**2 / 3 + 5 * _N**3 / 16 + 41 * _N**4 / 180 - 127 * _N**5 / 288 + 7891 * _N**6 / 37800,
    13 * _N**2 / 48 - 3 * _N**3 / 5 + 557 * _N**4 / 1440 + 281 * _N**5 / 630 - 1983433 * _N**6 / 1935360,
    61 * _N**3 / 240 - 103 * _N**4 / 140 + 15061 * _N**5 / 26880 + 167603 * _N**6 / 181440,
    49561 * _N**4 / 161280 - 179 * _N**5 / 168 + 6601661 * _N**6 / 7257600,
    34729 * _N**5 / 80640 - 3418889 * _N**6 / 1995840,
    212378941 * _N**6 / 319334400,
)
_SCALE, _EASTING, _SOUTH = 0.9996, 500_000.0, 10_000_000.0


def utm_code(projection: str) -> int | None:
    """Return the EPSG code of a UTM zone on WGS 84, such as 32619 for `EPSG:32619`; None for another projection."""
    match = re.fullmatch(r"\s*epsg:(32[67]\d\d)\s*", projection, re.IGNORECASE)
    return int(match[1]) if match and 1 <= int(match[1]) % 100 <= 60 else None


def project(degrees: Array, code: int) -> Array:
    """Return metres (n, 2), east and north, in a UTM zone of points (n, 2), longitude and latitude in degrees."""
    zone, south = code % 100, code // 100 == 327
    longitude, latitude = np.deg2rad(degrees.T)
    turn = longitude - np.deg2rad(6 * zone - 183)
    tangent = np.tan(latitude)
    sigma = np.sinh(_E * np.arctanh(_E * tangent / np.hypot(1, tangent)))
    conformal = tangent * np.hypot(1, sigma) - sigma * np.hypot(1, tangent)
    xi, eta = np.arctan2(conformal, np.cos(turn)), np.arcsinh(np.sin(turn) / np.hypot(conformal, np.cos(turn)))
    orders = 2 * np.arange(1, 7)[:, None]
    alpha = np.array(_ALPHA)[:, None]
    north = xi + (alpha * np.sin(orders * xi) * np.cosh(orders * eta)).sum(axis=0)
    east = eta + (alpha * np.cos(orders * xi) * np.sinh(orders * eta)).sum(axis=0)
    metres: Array = _SCALE * _RADIUS * np.column_stack([east, north])
    metres += [_EASTING, _SOUTH if south else 0.0]
    return metres
