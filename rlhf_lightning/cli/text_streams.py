"""Text where it enters and leaves the program: UTF-8 in every locale, and output that no character can break."""

from __future__ import annotations

import codecs
import io
import locale
import os
import sys
from collections.abc import Sequence

from rlhf_lightning.errors import UserError

BROKEN_PIPE = 141
"""Exit status where nobody reads the output any more, as a shell reports it."""


def use_utf8() -> None:
    """Start the program again in Python's UTF-8 mode, where the locale has another encoding.

    Outside of this mode, which Python 3.15 makes the default (PEP 686), arguments, names of files and whatever a
    library opens without naming an encoding are text in the encoding of the locale.
    """
    tried = sys.flags.utf8_mode or os.environ.get("PYTHONUTF8") == "1"
    if not tried and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def show_any_character() -> None:
    """Have output write characters that its encoding lacks as escapes, rather than fail after all the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_arguments(argv: Sequence[str]) -> None:
    """Refuse arguments that are no text: configurations and files could not hold them.

    Raises:
        UserError: an argument is not UTF-8.
    """
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            given = word.encode("utf-8", "surrogateescape")
            raise UserError(f"the argument {given!r} is not UTF-8; expected text in UTF-8") from None


def output_failure() -> OSError | None:
    """Why output cannot be written, if that is so; what is still to be written then goes nowhere, without complaint."""
    try:
        print(flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
