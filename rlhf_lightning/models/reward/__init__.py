"""Networks that score responses."""
