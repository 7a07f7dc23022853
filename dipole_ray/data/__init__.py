"""Offline datasets and the replay, in numpy and Arrow: no torch, no Ray, no gymnasium."""
