"""The exception that ends a command with a single line and exit status 2, and checks that raise it."""

from collections.abc import Iterable, Iterator, Mapping
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


def raise_all(mistakes: Iterable[str]) -> None:
    """Raise one `UserError` that names all mistakes; nothing where there are none."""
    lines = dict.fromkeys(mistakes)
    if lines:
        raise UserError("; ".join(lines))


def check_counts(prefix: str, **counts: int | None) -> None:
    """Raise `UserError` for the numbers below 1; None is no number.

    Args:
        prefix: of the keys, such as ``model.init_args``.
    """
    check_limits(prefix, {name: (n is None or n >= 1, "at least 1", n) for name, n in counts.items()})


def check_limits(prefix: str, limits: Mapping[str, tuple[bool, str, object]]) -> None:
    """Raise `UserError` for the values that do not fit.

    Args:
        limits: by name: whether the value fits, what was expected, and the value.
    """
    raise_all(
        f"{prefix}.{name} must be {expected}, got {value}"
        for name, (fits, expected, value) in limits.items()
        if not fits
    )
