"""DIPOLE as an RLlib algorithm on the new API stack."""
