"""Fitting scores to human feedback, and measuring how good they are."""
