"""DIPOLE as an RLlib algorithm on the new API stack."""

from dipole_ray.envs.gl import disable_rendering_by_default

# Importing RLlib imports dm_control, which opens whatever OpenGL it finds unless it was told not to.
disable_rendering_by_default()
