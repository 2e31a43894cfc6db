"""Measurements: each prints ratios with their spread; --write keeps them in docs/results."""
