"""Environments behind one factory, their tasks, and the collectors that make datasets from them."""
