"""Measurements of this package; each writes a dated result."""
