"""Offline datasets, in numpy and Arrow: no torch, no Ray, no gymnasium."""
