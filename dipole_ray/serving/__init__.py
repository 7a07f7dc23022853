"""A trained policy without optimizer, simulator or Ray."""
