"""How figures look: colours, labels, panels."""
