"""Transformers: policies, critics, and the conversion between text and token ids."""
