"""The same work by this package and by its peers."""
