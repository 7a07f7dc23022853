"""Environments behind one factory, their tasks, and relabelling."""
