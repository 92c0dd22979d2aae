import datetime
import gzip
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.text.prompts_io import read_prompts, read_responses, write_jsonl

USER, REPLY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_read_prompts_keeps_order_and_repetitions(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "b"}, {"prompt": "a"}, {"prompt": "b"})
    assert read_prompts(path) == read_prompts(str(path)) == ["b", "a", "b"]
    assert read_prompts(write(path, {"messages": [USER]}, {"messages": [USER, REPLY]})) == [[USER], [USER]]
    assert read_prompts(write(path, {"prompt": "a", "chosen": "same", "rejected": "same"})) == ["a"]


def test_read_prompts_of_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b'\xef\xbb\xbffirst\r\n second \n{"prompt": 3}\n\n')
    assert read_prompts(path) == ["first", " second ", '{"prompt": 3}']
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(b"one\ntwo", mtime=0))
    assert read_prompts(packed) == ["one", "two"]


def test_read_prompts_of_a_stream():
    assert read_prompts(io.StringIO("first\nsecond\n")) == ["first", "second"]
    assert read_prompts(io.StringIO('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')) == [
        "a",
        [{"role": "user", "content": "b"}],
    ]
    with pytest.raises(UserError, match=r"^<stream>:2: malformed JSON"):
        read_prompts(io.StringIO('{"prompt": "a"}\nplain\n'))
    with pytest.raises(UserError, match=r"^<stream>: the file is empty; expected at least one prompt"):
        read_prompts(io.StringIO(""))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_read_prompts_of_a_stream_reads_its_bytes_as_utf8(encoding):
    def stream(content):
        return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)), encoding=encoding)

    for content in (
        "é\n\u2028ü\n".encode(),
        b"\xef\xbb\xbf" + "é\n\u2028ü\n".encode(),
        gzip.compress("é\n\u2028ü".encode()),
    ):
        assert read_prompts(stream(content)) == ["é", "\u2028ü"]
    with pytest.raises(UserError, match=r"^<stream>:1: not UTF-8 text \(byte 2\); expected one prompt per line"):
        read_prompts(stream("né\n".encode("latin-1")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\n\ntwo\n", "{path}:2: an empty line; expected one prompt per line"),
        ("a.txt", b"one\n\xff\n", "{path}:2: not UTF-8 text (byte 1); expected one prompt per line"),
        ("a.txt", "one\n".encode("utf-16-le"), "{path}:1: a NUL character, as UTF-16 has them; expected UTF-8 text"),
        ("a.txt", "one\n".encode("utf-16"), "{path}:1: not UTF-8 text (byte 1)"),
        ("a.txt", b"\n", "{path}: the file is empty; expected at least one prompt"),
        ("a.txt.gz", gzip.compress(b"one\n", mtime=0)[:-4], "{path}:2: the gzip data ends early"),
        ("a.jsonl", b"", "{path}: the file is empty; expected at least one record"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', "{path}:2: empty prompt; expected text"),
        ("a.jsonl", b'{"q": "a"}\n', "{path}:1: no key 'prompt' (its keys: q); expected "),
        ("a.csv", b"prompt\na\n", "{path}: unknown kind of file '.csv'"),
    ],
)
def test_read_prompts_names_the_line(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    for read in (read_prompts, read_responses):
        with pytest.raises(UserError, match=r"a\.txt: no such file"):
            read(tmp_path / "a.txt")


def test_read_responses_with_their_records(tmp_path):
    rows = [{"prompt": "a", "response": "", "id": 1}, {"prompt": [USER], "completion": [REPLY], "id": 2}]
    answers = read_responses(write(tmp_path / "a.jsonl", *rows))
    assert [(answer.prompt, answer.response) for answer in answers] == [("a", ""), ([USER], "Ho.")]
    assert [answer.record for answer in answers] == rows
    chat = read_responses(write(tmp_path / "b.jsonl", {"messages": [USER, REPLY]}))
    assert chat == [([USER], "Ho.", {"messages": [USER, REPLY]})]


def test_read_responses_names_the_line_without_a_response(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "a"})
    with pytest.raises(UserError) as caught:
        read_responses(path)
    assert str(caught.value).startswith(f"{path}:2: the layout is prompt; expected prompt/response, prompt/completion")
    write(path, {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(UserError, match=r":1: the layout is prompt/chosen/rejected; expected prompt/response"):
        read_responses(path)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "new/folder/out.jsonl"])
def test_write_jsonl_round_trip(name, tmp_path):
    rows = [{"prompt": "é 🦊\n\u2028", "response": "", "score": 0.1}, {"prompt": [USER], "response": "b", "score": -1}]
    path = tmp_path / name
    write_jsonl(path, iter(rows))
    assert [answer.record for answer in read_responses(path)] == rows
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_records_that_json_cannot_hold_are_written_after_all(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "note": "\\ud800 é", "numbers": [NaN, 1.5, {"x": Infinity}]}\n')
    (answer,) = read_responses(path)
    write_jsonl(path, [answer.record])
    assert path.read_bytes().decode() == (
        '{"prompt": "a", "response": "b", "note": "\\ud800 é", "numbers": [null, 1.5, {"x": null}]}\n'
    )
    table = pa.table({"prompt": ["a"], "response": ["b"], "day": [datetime.date(2026, 1, 2)], "done": [True]})
    pq.write_table(table, tmp_path / "a.parquet")
    (answer,) = read_responses(tmp_path / "a.parquet")
    assert answer.record == {"prompt": "a", "response": "b", "day": "2026-01-02", "done": True}


def test_write_jsonl_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, [{"a": 2}, {"a": math.nan}])

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"out\.jsonl: cannot be written \(No space left on device\)"):
        write_jsonl(path, [{"a": 3}])
    assert path.read_text() == '{"a": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_write_jsonl_into_a_file_as_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out\.jsonl: cannot be written"):
        write_jsonl(tmp_path / "file" / "out.jsonl", [])
