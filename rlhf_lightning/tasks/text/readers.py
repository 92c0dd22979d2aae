"""Reading the records of a data file, each with its location.

Reads JSON lines (plain or gzipped), Parquet and Hugging Face ``datasets``. Each fault of a file, short of the meaning
of its records, is reported in one line that names the file and the line.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_lightning.errors import UserError, suggestion

if TYPE_CHECKING:
    import datasets

Located: TypeAlias = tuple[str, dict[str, Any]]
"""The location of a record (``file:line``, or ``file, record n`` in a format without lines), and the record."""

ACCEPTED = ".jsonl, .jsonl.gz, .json with one object per line, .parquet, or a Hugging Face dataset"
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")
DATASET_SUFFIXES = (*JSON_SUFFIXES, ".parquet", ".arrow", ".csv")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<subset>[\w.-]+))?")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Source:
    """A data file or dataset that exists and has not been opened yet.

    Args:
        path: as the user wrote it, for messages.
        open: starts reading the records.
        place: the file or folder; None on the hub.
    """

    path: str
    open: Callable[[], Iterator[Located]]
    place: Path | None = None

    def records(self) -> Iterator[Located]:
        """The records in order.

        Raises:
            UserError: a line cannot be read, or there is no record at all.
        """
        empty = True
        for located in self.open():
            empty = False
            yield located
        if empty:
            raise UserError(f"{self.path}: the file is empty; expected at least one record")


def locate(path: str) -> Source:
    """Find a data file, a dataset folder or a dataset on the hub, without reading it.

    ``owner/name``, ``owner/name/subset`` and a folder may be followed by ``:split``; the default is ``train``, or
    the only split there is.

    Raises:
        UserError: there is no such file or folder, or its format is unknown.
    """
    if not path:
        raise UserError(f"the path of the data is empty; expected {ACCEPTED}")
    file = Path(path).expanduser()
    if file.is_file():
        return Source(path, _file_reader(path, file), file)
    folder, colon, split = path.rpartition(":")
    if file.is_dir() or (colon and Path(folder).expanduser().is_dir()):
        name, wanted = (path, None) if file.is_dir() else (folder, split)
        checked = _checked_folder(name)
        return Source(path, partial(_read_dataset, path, checked, None, wanted), Path(checked))
    name, wanted = (folder, split) if colon else (path, None)
    hub = _HUB_NAME.fullmatch(name)
    # A path below a folder that exists, or with the suffix of a file, is a file that is missing.
    if hub and not name.lower().endswith(DATASET_SUFFIXES) and not Path(name.split("/")[0]).is_dir():
        return Source(path, partial(_read_dataset, path, hub["name"], hub["subset"], wanted))
    raise _missing_file(path)


def _missing_file(path: str) -> UserError:
    """The error for a path that does not exist, with similar names in its folder."""
    file = Path(path).expanduser()
    if file.exists():
        return UserError(f"{path}: not a regular file; expected {ACCEPTED}")
    if not file.parent.is_dir():
        return UserError(f"{path}: no such file (there is no folder {file.parent})")
    names = sorted(entry.name for entry in file.parent.iterdir())
    hint = suggestion(file.name, names, otherwise=f"expected {ACCEPTED}", most=3, cutoff=0.5)
    return UserError(f"{path}: no such file; {hint}")


def _checked_folder(path: str) -> str:
    """The path of a folder, if it holds files that ``datasets`` reads."""
    folder = Path(path).expanduser()
    if _saved_to_disk(folder) or any(
        entry.name.lower().endswith(DATASET_SUFFIXES) for entry in [*folder.glob("*"), *folder.glob("*/*")]
    ):
        return str(folder)
    raise UserError(f"{path}: a folder without data files; expected {ACCEPTED}")


def json_lines(path: str, lines: Iterable[bytes]) -> Iterator[Located]:
    """The objects in JSON lines. Blank lines are allowed only after the last object.

    Raises:
        UserError: a line is blank, not UTF-8, not JSON or not an object.
    """
    blank = None
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            blank = blank or where
            continue
        if blank:
            raise UserError(f"{blank}: an empty line; expected one JSON object per line")
        yield where, _json_object(where, line)


def file_lines(path: str, file: Path | BufferedReader) -> Iterator[bytes]:
    """The lines of a plain or gzipped file, or of one that is open, without a byte-order mark.

    Raises:
        UserError: it cannot be read, or its gzip data is damaged.
    """
    number = 0
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as raw:
            packed = raw.peek(2)[:2] == _GZIP_MAGIC
            with gzip.open(raw) if packed else nullcontext(raw) as stream:
                for number, line in enumerate(stream, start=1):
                    yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except EOFError as error:
        raise UserError(
            f"{path}:{number + 1}: the gzip data ends early; expected a complete file (a download that stopped?)"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: damaged gzip data ({error}); expected a complete file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _json_object(where: str, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8").rstrip(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start + 1}); expected one JSON object") from error
    except (ValueError, RecursionError) as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{where}: malformed JSON{at} ({reason}); expected one JSON object per line") from error
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number or boolean")
        raise UserError(f"{where}: {kind}; expected one JSON object per line")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: JSON readers keep the last of two and say nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return value


def _file_reader(path: str, file: Path) -> Callable[[], Iterator[Located]]:
    name = file.name.lower()
    if name.endswith(".parquet"):
        return partial(_read_parquet, path, file)
    if name.endswith(JSON_SUFFIXES) or not file.suffix:
        return partial(_read_json_lines, path, file)
    raise UserError(f"{path}: unknown kind of file {file.suffix!r}; expected {ACCEPTED}")


def _read_json_lines(path: str, file: Path) -> Iterator[Located]:
    return json_lines(path, file_lines(path, file))


def _numbered(path: str, rows: Iterable[dict[str, Any]]) -> Iterator[Located]:
    for number, row in enumerate(rows, start=1):
        yield f"{path}, record {number}", row


def _read_parquet(path: str, file: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield from _numbered(path, (row for batch in table.iter_batches() for row in batch.to_pylist()))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_one_line(error)})") from error


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _read_dataset(path: str, name: str, subset: str | None, split: str | None) -> Iterator[Located]:
    """A dataset in the folder, or on the hub, that has this name."""
    import datasets

    saved = _saved_to_disk(Path(name))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, subset)
    except Exception as error:  # the library raises whatever its loaders and its network stack raise
        raise UserError(f"{path}: not loadable as a Hugging Face dataset ({_one_line(error)})") from error
    return _numbered(path, _chosen_split(path, loaded, split))


def _chosen_split(path: str, loaded: datasets.Dataset | datasets.DatasetDict, split: str | None) -> datasets.Dataset:
    if not isinstance(loaded, dict):
        if split is None:
            return loaded
        raise UserError(f"{path}: the dataset has no splits; expected its path without ':{split}'")
    if split is None:
        split = next(iter(loaded)) if len(loaded) == 1 else "train"
    if split not in loaded:
        raise UserError(f"{path}: no split {split!r}; expected one of {', '.join(loaded)} as 'path:split'")
    return loaded[split]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
