"""Runs: from a config to an algorithm, trained, evaluated, checkpointed and resumed in a folder of its own."""
