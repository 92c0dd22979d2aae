import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.bench.rows import PARTS
from rlhf_lightning.commands import bench


def test_a_table_is_written_with_the_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlhf_lightning.bench.rows.VOCABULARIES", (15, 3000))
    monkeypatch.setattr("rlhf_lightning.bench.machine._SIDE", 64)
    monkeypatch.setattr("rlhf_lightning.bench.machine._BYTES", 1 << 16)
    target = tmp_path / "bench.md"
    assert not main(["bench", "--only", "noise", "--rounds", "2", "--out", str(target)])
    head, _, *table = target.read_text(encoding="utf-8").splitlines()
    assert "GFLOP/s in float32" in head
    assert "2 rounds" in head
    assert len(table) == 2 + 2 * 3
    assert [line.split("|")[2].strip() for line in table[-3:]] == ["log-softmax", "all noise", "noise that matters"]
    printed = capsys.readouterr().out
    assert printed.count("noise that matters") == 2
    assert "one token for each of 64 responses of 3,000\n" in printed


def test_every_part_can_be_chosen():
    assert list(PARTS) == list(bench._PARTS)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--only", "cooking"],
            "'cooking' is no part; expected some of decoding, noise, updates, stages, limits, growth, memory",
        ),
        (["--rounds", "0"], "--rounds"),
        (["--out", "/dev/null/x.md"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(argv, line, capsys):
    assert main(["bench", *argv]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert line in told
