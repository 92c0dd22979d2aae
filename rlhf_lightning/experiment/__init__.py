"""A comparison: declared before it runs, judged by its statistics. Imports no torch."""
