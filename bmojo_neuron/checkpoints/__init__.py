"""Checkpoint formats of others: one module per family, with its configuration and its names."""
