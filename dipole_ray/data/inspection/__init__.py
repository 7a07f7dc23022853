"""What a dataset holds, and a verdict on it before any training."""
