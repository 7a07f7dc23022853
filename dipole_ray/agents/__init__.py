"""The agents, torch only; importing any of this makes all of their settings known."""

from dipole_ray.agents import dipole, fql, iql

__all__ = ["dipole", "fql", "iql"]
