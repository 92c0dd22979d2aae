"""Claims over the arms of a comparison: read, tested and judged. Imports no torch."""
