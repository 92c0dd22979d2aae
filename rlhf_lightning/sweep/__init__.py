"""Hyperparameter searches: search spaces in the format of W&B, read and run without an account. Imports no torch."""
