"""Collectors: datasets made on the spot by scripted controllers, seeded and bitwise reproducible."""

from dipole_ray.collect.dataset import collect, files_of

__all__ = ["collect", "files_of"]
