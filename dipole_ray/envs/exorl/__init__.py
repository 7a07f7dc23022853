"""ExORL's benchmark: its tasks as environments, and rewards of any task for states that another policy visited."""
