"""Files that commands read and write: prompts to answer, responses to score, and JSON lines."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.files import replace_file
from rlhf_lightning.tasks.text.layouts import parse
from rlhf_lightning.tasks.text.readers import Located, file_lines, json_lines, locate
from rlhf_lightning.tasks.text.records import LayoutError, TextRecord
from rlhf_lightning.types import Prompt


class Answer(NamedTuple):
    """A prompt, the response to it, and the record that they were read from, as JSON can hold it."""

    prompt: Prompt
    response: str
    record: dict[str, Any]


def read_prompts(source: str | Path | TextIO) -> list[Prompt]:
    """Prompts to answer, in order, repeated ones included.

    Args:
        source: a ``.txt`` file with one prompt per line, any file or dataset that `TextTask` reads (its responses
            are ignored), or an open text stream with the content of either, which is read as UTF-8 in every locale.

    Raises:
        UserError: names the line and what was expected.
    """
    if not isinstance(source, str | Path):
        name = str(getattr(source, "name", "<stream>"))
        lines = list(file_lines(name, getattr(source, "buffer", None) or _bytes_of(source)))
        prompts = list(_from_records(json_lines(name, lines)) if _is_json(lines) else _from_text(name, lines))
    else:
        name = str(source)
        file = Path(name).expanduser()
        is_text = file.is_file() and file.name.lower().endswith((".txt", ".txt.gz"))
        prompts = list(_from_text(name, file_lines(name, file)) if is_text else _from_records(locate(name).records()))
    if not prompts:
        raise UserError(f"{name}: the file is empty; expected at least one prompt")
    return prompts


def read_responses(path: str | Path) -> list[Answer]:
    """Responses to score, in order; a response may be empty.

    Args:
        path: a file or dataset of prompt/response, prompt/completion, or messages ending with an assistant turn.

    Raises:
        UserError: names the line and what was expected.
    """
    answers = []
    for where, fields in locate(str(path)).records():
        record = _parsed(where, fields)
        if len(record.responses) != 1:
            raise UserError(
                f"{where}: the layout is {record.layout.title}; expected prompt/response, prompt/completion or "
                "messages ending with an assistant turn"
            )
        answers.append(Answer(record.prompt, record.responses[0], _storable(fields)))
    return answers


def write_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one object per line (gzipped if the name ends in ``.gz``): the whole file, or nothing.

    Raises:
        UserError: the file cannot be written.
        ValueError: a record holds a number that JSON does not have (NaN or infinity).
    """
    target = Path(path).expanduser()
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    content = "".join(lines).encode("utf-8", "backslashreplace")  # half a surrogate pair: an escape is what JSON has
    if target.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _storable(value: Any) -> Any:
    """A value as JSON can hold it: no number is null, and what only other formats have, such as dates, is text."""
    if isinstance(value, dict):
        return {str(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _bytes_of(stream: TextIO) -> io.BufferedReader:
    """The content of a stream that has no bytes of its own."""
    return io.BufferedReader(io.BytesIO(stream.read().encode("utf-8", "surrogateescape")))


def _parsed(where: str, fields: dict[str, Any]) -> TextRecord:
    try:
        return parse(fields)
    except LayoutError as error:
        raise UserError(f"{where}: {error}") from error


def _from_records(records: Iterable[Located]) -> Iterator[Prompt]:
    for where, fields in records:
        yield _parsed(where, fields).prompt


def _from_text(path: str, lines: Iterable[bytes]) -> Iterator[Prompt]:
    blank = None
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: not UTF-8 text (byte {error.start + 1}); expected one prompt per line"
            ) from error
        if "\0" in text:
            raise UserError(f"{where}: a NUL character, as UTF-16 has them; expected UTF-8 text, one prompt per line")
        if not text.strip():
            blank = blank or where
        elif blank:
            raise UserError(f"{blank}: an empty line; expected one prompt per line")
        else:
            yield text


def _is_json(lines: list[bytes]) -> bool:
    try:
        return isinstance(json.loads(lines[0]), dict) if lines else False
    except (ValueError, RecursionError):
        return False
