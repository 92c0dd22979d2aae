"""Transformers: policies, critics, and what lies between text and token ids."""
