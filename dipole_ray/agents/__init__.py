"""The algorithm in torch, and nothing else: no Ray, no gymnasium, no files."""
