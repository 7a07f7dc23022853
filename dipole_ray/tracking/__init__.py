"""The metrics of a run: one JSON line each in `metrics.jsonl`, from which a background thread feeds MLflow."""
