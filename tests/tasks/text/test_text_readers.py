import gzip
import json
import subprocess
import sys

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.text import TextTask
from rlhf_lightning.tasks.text.readers import locate

ROWS = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(30)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(path):
    return list(locate(str(path)).records())


def error_of(path):
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.json.gz", "noext", "A.JSONL"])
def test_json_lines_are_read_with_their_numbers(name, tmp_path):
    path = tmp_path / name
    content = lines(ROWS)
    path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert read(path) == [(f"{path}:{i}", row) for i, row in enumerate(ROWS, start=1)]


def test_gzip_is_told_by_content_and_not_by_name(tmp_path):
    packed, plain = tmp_path / "packed.jsonl", tmp_path / "plain.jsonl.gz"
    packed.write_bytes(gzip.compress(lines(ROWS)))
    plain.write_bytes(lines(ROWS))
    assert [row for _, row in read(packed)] == [row for _, row in read(plain)] == ROWS


def test_byte_order_mark_and_windows_line_ends_and_blank_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:2]).replace(b"\n", b"\r\n") + b"\r\n\n")
    assert [row for _, row in read(path)] == ROWS[:2]


GOOD = b'{"prompt": "Hi"}\n'
BAD_FILES = {
    "empty file": (b"", "{path}: the file is empty; expected at least one record"),
    "only blank lines": (b"\n\n", "{path}: the file is empty; expected at least one record"),
    "empty line": (GOOD + b"\n \n" + GOOD, "{path}:2: an empty line; expected one JSON object per line"),
    "malformed": (GOOD + b'{"prompt": "Hi"\n', "{path}:2: malformed JSON at column 16 (Expecting ',' delimiter)"),
    "array over lines": (b"[\n" + GOOD, "{path}:1: malformed JSON"),
    "array": (GOOD * 2 + b"[1]\n", "{path}:3: an array; expected one JSON object per line"),
    "string": (b'"Hi"', "{path}:1: a string; expected one JSON object per line"),
    "number": (GOOD + b"3", "{path}:2: a number or boolean; expected one JSON object per line"),
    "null": (b"null", "{path}:1: null; expected one JSON object per line"),
    "not UTF-8": (GOOD + b'{"prompt": "\xe9"}\n', "{path}:2: not UTF-8 text (byte 13); expected one JSON object"),
    "too deep": (GOOD + b"[" * 100_000, "{path}:2: malformed JSON"),
    "key given twice": (b'{"a": 1, "a": 1}', "{path}:1: malformed JSON (key 'a' is given twice)"),
    "key of a turn given twice": (
        GOOD + b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        "{path}:2: malformed JSON (key 'content' is given twice)",
    ),
    "too many digits": (b'{"margin": ' + b"9" * 5000 + b"}", "{path}:1: malformed JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_names_the_line(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert error_of(path).startswith(message.format(path=path))


def test_truncated_gzip_names_the_line_it_breaks_in(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    stored = gzip.compress(lines(ROWS), compresslevel=0)
    path.write_bytes(stored[: stored.index(b"answer 7")])
    assert error_of(path).startswith(f"{path}:8: the gzip data ends early; expected a complete file")


def test_damaged_gzip(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    packed = bytearray(gzip.compress(lines(ROWS)))
    packed[-6] ^= 255  # in the checksum, which is compared after the last line
    path.write_bytes(packed)
    assert error_of(path).startswith(f"{path}:31: damaged gzip data (CRC check failed")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    source = locate(str(path))
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"data\.jsonl: cannot be read \(Permission denied\)"):
        list(source.records())


def test_missing_file_suggests_close_names(tmp_path):
    (tmp_path / "harmless.jsonl").write_bytes(GOOD)
    with pytest.raises(UserError, match=r"harmles\.jsonl: no such file; did you mean harmless\.jsonl\?"):
        locate(str(tmp_path / "harmles.jsonl"))
    with pytest.raises(UserError, match=r"zzz: no such file; expected \.jsonl"):
        locate(str(tmp_path / "zzz"))
    with pytest.raises(UserError, match=r"no such file \(there is no folder .*nowhere\)"):
        locate(str(tmp_path / "nowhere" / "a.jsonl"))


@pytest.mark.parametrize("path", ["data.jsonl", "data/pairs", "data/pairs.jsonl", "a/b/c/d", "word", "../a/b"])
def test_missing_relative_file_is_not_taken_for_a_hub_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="no such file"):
        locate(path)


def test_wrong_kind_of_path(tmp_path):
    with pytest.raises(UserError, match=r": a folder without data files; expected \.jsonl"):
        locate(str(tmp_path))
    (tmp_path / "notes.pdf").write_bytes(b"")
    with pytest.raises(UserError, match=r"unknown kind of file '\.pdf'; expected \.jsonl"):
        locate(str(tmp_path / "notes.pdf"))
    with pytest.raises(UserError, match="the path of the data is empty"):
        locate("")


def test_parquet_records_are_numbered(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = [{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": f"{i}"}]} for i in "abc"]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(chat), path)
    assert read(path) == [(f"{path}, record {i}", row) for i, row in enumerate(chat, start=1)]
    chat[2]["messages"][1]["role"] = "bot"
    pq.write_table(pa.Table.from_pylist(chat), path)
    with pytest.raises(UserError, match=r"a\.parquet, record 3: 'messages' turn 2 has the unknown role 'bot'"):
        TextTask(str(path)).prompts("train")
    pq.write_table(pa.Table.from_pylist([], schema=pa.schema({"prompt": pa.string()})), path)
    assert "the file is empty" in error_of(path)
    path.write_bytes(lines(ROWS))
    assert "a.parquet: not a readable Parquet file" in error_of(path)


def test_dataset_saved_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    one = tmp_path / "one"
    assert read(one) == [(f"{one}, record {i}", row) for i, row in enumerate(ROWS, start=1)]
    assert "the dataset has no splits" in error_of(f"{one}:train")
    DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(str(tmp_path / "many"))
    assert [len(read(f"{tmp_path}/many{split}")) for split in ("", ":train", ":test")] == [30, 30, 2]
    assert "many:dev: no split 'dev'; expected one of train, test as 'path:split'" in error_of(f"{tmp_path}/many:dev")
    DatasetDict({"test": data}).save_to_disk(str(tmp_path / "only"))
    assert len(read(tmp_path / "only")) == 30
    (tmp_path / "only" / "dataset_dict.json").write_text("{")
    assert "only: not loadable as a Hugging Face dataset (" in error_of(tmp_path / "only")


def test_dataset_folder_of_data_files(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines(ROWS))
    (folder / "test.jsonl").write_bytes(lines(ROWS[:3]))
    assert [row for _, row in read(folder)] == ROWS
    task = TextTask(str(folder), heldout_path=f"{folder}:test")
    assert [len(task.demonstrations(split)) for split in ("train", "heldout")] == [27, 3]


def test_hub_name_is_handed_to_datasets(monkeypatch):
    import datasets

    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list([])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read("owner/set.v2-x")) == 30
    assert len(read("owner/set/subset:train")) == 30
    assert "owner/set:dev: the file is empty" in error_of("owner/set:dev")
    assert asked == [(("owner/set.v2-x", None), {}), (("owner/set", "subset"), {}), (("owner/set", None), {})]

    def fail(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert error_of("owner/set") == "owner/set: not loadable as a Hugging Face dataset (no network)"


def test_construction_imports_neither_datasets_nor_transformers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS))
    code = (
        "import sys; from rlhf_lightning.tasks.text import TextTask; "
        f"TextTask({str(path)!r}).prompts('train'); "
        "print([m for m in ('datasets', 'transformers', 'tokenizers', 'pyarrow', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
