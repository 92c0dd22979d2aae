"""Evaluating a policy on held-out prompts and demonstrations."""
