"""Anybody's results from a CSV file."""

import math

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.statistics.results_file import from_csv


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "results.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_reads_numbers_and_leaves_comments_out(written):
    table = from_csv(written("\ufeffarm, seed, return, comment\nppo,1,3.5,\nppo, 2,,crashed\n"))
    assert list(table.columns) == ["arm", "seed", "return"]
    assert table["seed"].tolist() == [1, 2]
    assert table["return"][0] == 3.5
    assert math.isnan(table["return"][1])


def test_reads_task_and_status(written):
    table = from_csv(written("arm,seed,task,status,x,y\n1,1,2,finished,1e-3,NaN\n1,1,3,failed,,2\n"))
    assert table["arm"].tolist() == ["1", "1"]
    assert table["task"].tolist() == ["2", "3"]
    assert table["status"].tolist() == ["finished", "failed"]
    assert table["y"][1] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'arm': its columns are none"),
        ("arm,seed,x\n", "has no row"),
        ("algo,seed,x\n", "no column 'arm': its columns are algo, seed, x"),
        ("arm,sead,x\na,1,1\n", "no column 'seed': did you mean sead"),
        ("arm,seed,x\na,one,1\n", "line 2, column seed: expected a whole number, got 'one'"),
        ("arm,seed,x\na,1,1\na,2,1.5.0\n", "line 3, column x: expected a number, got '1.5.0'"),
        ("arm,seed,x\na,1,1\nb,1,1\na,1,2\n", "line 4: arm a, seed 1 is on line 2 already"),
        ("arm,seed,x\na,1\n", "line 2: expected 3 cells"),
        ("arm,seed,x\na,1,1,1\n", "line 2: expected 3 cells"),
        ("arm,seed,x\n,1,1\n", "line 2, column arm: empty"),
        ("arm,seed,x,x\na,1,1,1\n", "two columns of the same name"),
        ("arm,seed,note\na,1,good\n", "no column of numbers"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(written, text, message):
    with pytest.raises(UserError, match=message):
        from_csv(written(text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read as CSV: No such file"):
        from_csv(tmp_path / "none.csv")


def test_all_mistakes_are_named_at_once(written):
    with pytest.raises(UserError, match=r"line 2, column seed.*line 3, column x"):
        from_csv(written("arm,seed,x\na,?,1\nb,1,?\n"))
