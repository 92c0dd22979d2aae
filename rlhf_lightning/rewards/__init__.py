"""Where scores come from: learned models and the base class of every other source."""
