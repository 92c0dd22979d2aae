"""One figure, one module."""
