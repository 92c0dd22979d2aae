"""Perceptrons for gymnasium environments."""
