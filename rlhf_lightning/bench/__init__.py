"""How fast the parts of an iteration are on this machine."""
