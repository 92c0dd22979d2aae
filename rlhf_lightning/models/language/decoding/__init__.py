"""How a language model writes token by token: through its own forward, or by a step of our own for its architecture."""
