"""Progress, files and detectors."""
