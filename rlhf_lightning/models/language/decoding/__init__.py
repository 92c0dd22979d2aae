"""How a language model writes token by token: through its own forward, or by steps that are written out here."""
