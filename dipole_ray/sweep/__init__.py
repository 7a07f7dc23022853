"""Sweeps: trials over any setting of a run, each scored over the whole grid of omega and candidates at every rung."""
