"""The one exception that ends a command with a single line and exit status 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the user can put right: the message names what was wrong and what was expected."""


@contextmanager
def located(place: str) -> Iterator[None]:
    """Add to a `UserError` where in the run it happened."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (at {place}; the checkpoint before it is kept)") from error
