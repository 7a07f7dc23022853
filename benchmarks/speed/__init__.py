"""How fast the parts of a run are, each against another way of doing the same in one run."""
