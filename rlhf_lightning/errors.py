"""The exception that ends a command with a single line and exit status 2, and checks that raise it."""

import difflib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something that the user can put right: the message names what was wrong and what was expected."""


@contextmanager
def located(place: str) -> Iterator[None]:
    """Add to a `UserError` where in the run it happened."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (at {place}; the checkpoint before it is kept)") from error


def raised_in(error: BaseException) -> str:
    """Type and message of an exception, and the line of code that raised it: for errors of a user's own code."""
    kind = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return kind
    return f"{kind} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def suggestion(wrong: str, known: Iterable[str], *, otherwise: str, most: int = 1, cutoff: float = 0.6) -> str:
    """``did you mean …?`` for a name that is misspelt.

    Args:
        otherwise: what to say where no known name is close.
        most: number of names that are suggested at most.
        cutoff: how close they must be, from 0 (any) to 1 (the same).
    """
    close = difflib.get_close_matches(wrong, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def raise_all(mistakes: Iterable[str]) -> None:
    """Raise one `UserError` that names all mistakes; nothing where there are none."""
    lines = dict.fromkeys(mistakes)
    if lines:
        raise UserError("; ".join(lines))


MOST = 10_000_000
"""Largest number of anything that is made at a time: more would run for hours before memory ends."""


def check_counts(prefix: str, **counts: int | None) -> None:
    """Raise `UserError` for the numbers below 1 or above `MOST`; None is no number.

    Args:
        prefix: of the keys, such as ``model.init_args``.
    """
    expected = {name: "at least 1" if (n or 0) < 1 else f"at most {MOST:,}" for name, n in counts.items()}
    check_limits(prefix, {name: (n is None or 1 <= n <= MOST, expected[name], n) for name, n in counts.items()})


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
