"""One file per algorithm; none imports another."""
