"""One useful line out of jsonargparse's explanations."""

from __future__ import annotations


def one_line(message: str) -> str:
    """The line that says which key was wrong and what was expected."""
    return message
