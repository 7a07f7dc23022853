"""One reader a format; each yields trajectories as rows of the common schema."""
