"""Scenes that can be made anywhere: SUMO's traffic on road networks of OpenStreetMap, both from one wheel.

`cities` finds the networks, `network` makes maps of them, `traffic` runs SUMO, `drives` tells what a car met as logs of
NAVSIM's form tell it, and `record` keeps the scenes that are worth it.
"""
