"""Several commands as one: their order, what each depends on, and what is done already. Imports no torch."""
