"""Where scores come from, and on what scale and at what weight they are trained on."""
