"""Files with a JSON object on each line, of runs that may be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.records.files import write_atomically, writing


def keep_lines(path: Path, kept: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the other lines, and one that a crash cut off; the file itself where none is left.

    Args:
        kept: says of an object whether it stays.
    """
    if not path.is_file():
        return
    # not splitlines: a response may hold U+2028 and its kin, which end no line of such a file
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    left = [line + "\n" for line in lines if line.strip() and kept(json.loads(line))]
    if left:
        write_atomically(path, "".join(left))
    else:
        path.unlink()


def add_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Append objects.

    Raises:
        UserError: the file cannot be written.
    """
    text = "".join(json.dumps(dict(one), ensure_ascii=False) + "\n" for one in objects)
    with writing(path), open(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)
