"""Benchmarks: methods x tasks x seeds from one file, run as Ray tasks and reported with intervals."""
