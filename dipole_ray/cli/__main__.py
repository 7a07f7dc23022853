"""`python -m dipole_ray.cli` is `dipole`."""

import sys

from dipole_ray.cli import main

sys.exit(main())
