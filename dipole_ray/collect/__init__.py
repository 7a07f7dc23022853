"""Collectors: datasets made on the spot by scripted controllers, seeded and bitwise reproducible."""

from dipole_ray.collect.dataset import collect, files_of
from dipole_ray.collect.registry import collector_names

__all__ = ["collect", "collector_names", "files_of"]
