import csv

import pytest
import tiny_models

from rlhf_lightning.__main__ import main
from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.tasks.task import Task
from tests.tiny_tasks import Animals


class Unknown(Animals):
    def gold(self):
        return None


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bestof")
    tiny_models.policy("llama").save(folder / "animals")
    tiny_models.reward_model("llama").save(folder / "pipeline" / "reward" / "export")
    return folder


@pytest.fixture
def bestof(root, capsys, monkeypatch):
    """Run the command on a task object; its exit status, what it printed and what it complained about."""

    def run(*arguments, task=Animals, policy="animals"):
        monkeypatch.chdir(root)
        if task is not None:
            parse = LineParser.parse_intermixed_args
            monkeypatch.setattr(LineParser, "parse_with_task", lambda self, argv: (parse(self, argv), task()))
        status = main(["bestof", "--policy", policy, "--max_new_tokens", "6", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def rows(path):
    with path.open() as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def test_table_and_figure_are_written_and_printed(bestof, tmp_path):
    target = tmp_path / "new" / "out.csv"
    status, out, err = bestof("--reward", "pipeline", "--n", 6, "--out", target)
    assert (status, err) == (0, "")
    table = rows(target)
    assert [row["n"] for row in table] == [1, 2, 4, 6]
    proxy = [row["proxy"] for row in table]
    assert proxy == sorted(proxy)
    assert proxy[0] < proxy[-1]
    assert sorted(path.name for path in target.parent.iterdir()) == ["out.csv", "out.png", "out.svg"]
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["n", "KL"]
    assert lines[-1].startswith("9 different held-out prompts, 6 responses to each; wrote ")
    assert f"{table[-1]['gold']:.4f} ({table[-1]['gold_gain']:+.4f} ± " in lines[4]


def test_gold_can_select(bestof, tmp_path):
    assert bestof("--reward", "gold", "--n", 4, "--out", tmp_path / "out.csv")[0] == 0
    table = rows(tmp_path / "out.csv")
    assert "proxy" not in table[0]
    assert table[-1]["gold"] > table[0]["gold"]


def test_a_task_without_gold_has_the_proxy_alone(bestof, tmp_path):
    assert bestof("--reward", "pipeline", "--n", 2, "--out", tmp_path / "out.csv", task=Unknown)[0] == 0
    assert not [name for name in rows(tmp_path / "out.csv")[0] if "gold" in name]


def test_the_best_of_more_does_not_depend_on_the_batch_size(bestof, tmp_path):
    for size in (1, 7):
        options = ("--batch_size", size, "--out", tmp_path / f"{size}.csv")
        assert bestof("--reward", "gold", "--n", 4, *options)[0] == 0
    assert rows(tmp_path / "1.csv") == rows(tmp_path / "7.csv")


@pytest.mark.parametrize(
    ("arguments", "task", "line"),
    [
        (("--out", "x.csv"), Animals, "the following arguments are required: --reward"),
        (("--out", "x.csv", "--reward", "gold"), Unknown, "task Unknown has no gold reward"),
        (("--out", "x.csv", "--reward", "runs/none"), Animals, "runs/none does not exist"),
        (("--out", "x.csv", "--reward", "gold"), Task, "bestof needs prompts, which task Task does not provide"),
        (("--out", "x.csv", "--reward", "gold"), None, "--config TASK.yaml is missing"),
        (("--out", "x.csv", "--reward", "gold", "--n", "0"), Animals, "--n: invalid positive value: '0'"),
        (("--out", "x.png", "--reward", "gold"), Animals, "--out x.png is where the figure goes; expected a CSV file"),
    ],
)
def test_mistakes_are_one_line(bestof, arguments, task, line):
    status, out, err = bestof(*arguments, task=task)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


def test_a_policy_that_is_none_is_named(bestof):
    status, _, err = bestof("--out", "x.csv", "--reward", "gold", policy="runs/nothing")
    assert (status, err.count("\n")) == (2, 1)
    assert "runs/nothing does not exist" in err
