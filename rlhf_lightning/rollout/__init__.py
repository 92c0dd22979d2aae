"""Collecting rollouts: decoding engines for text, episodes in environments."""
