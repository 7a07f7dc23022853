"""Datasets that others host: fetched from the first mirror that serves them, resumed, and verified before use."""
