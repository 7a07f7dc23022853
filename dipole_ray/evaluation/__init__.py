"""Evaluation: one policy over a grid of omega and candidates, to rows with intervals, paths and videos."""
