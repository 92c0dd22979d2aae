import json

import pytest
import tiny_models

from rlhf_lightning.__main__ import main
from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.intervals import wilson_interval
from rlhf_lightning.tasks.task import Task
from tests.tiny_tasks import Animals


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("winrate")
    tiny_models.policy("llama").save(folder / "one")
    tiny_models.policy("llama", seed=1).save(folder / "other")
    tiny_models.reward_model("llama").save(folder / "pipeline" / "reward" / "export")
    return folder


@pytest.fixture
def winrate(root, capsys, monkeypatch):
    """Run the command on a task object; its exit status, what it printed and what it complained about."""

    def run(*arguments, task=Animals):
        monkeypatch.chdir(root)
        if task is not None:
            parse = LineParser.parse_intermixed_args
            monkeypatch.setattr(LineParser, "parse_with_task", lambda self, argv: (parse(self, argv), task()))
        status = main(["winrate", "--max_new_tokens", "6", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_printed_is_what_the_file_holds(winrate, tmp_path):
    target = tmp_path / "pairs.jsonl"
    status, out, err = winrate("one", "other", "--judge", "gold", "--out", target)
    assert (status, err) == (0, "")
    pairs = records(target)
    assert len(pairs) == 9
    for pair in pairs:
        score_a, score_b = (len(set(pair[name].split())) for name in ("a", "b"))
        assert (pair["score_a"], pair["score_b"]) == (score_a, score_b)
        assert pair["outcome"] == (score_a > score_b) + 0.5 * (score_a == score_b)
    outcomes = [pair["outcome"] for pair in pairs]
    low, high = wilson_interval(sum(outcomes), 9)
    lines = out.splitlines()
    assert lines[:2] == ["A: one", "B: other"]
    share = f"{100 * sum(outcomes) / 9:.1f} % of 9 pairs (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    counts = ", ".join(f"{outcomes.count(x)} {word}" for x, word in ((1, "wins"), (0.5, "ties"), (0, "losses")))
    assert lines[2] == f"A wins {share}: {counts} on 9 prompts"
    assert lines[-1] == f"wrote 9 pairs to {target}"


def test_a_policy_ties_with_itself_on_the_same_noise(winrate):
    """By a network, too, whose scores depend on the batch in their last digits."""
    for judge in ("gold", "pipeline"):
        out = winrate("one", "one", "--judge", judge, "--samples", 3)[1]
        assert "A wins 50.0 % of 27 pairs" in out
        assert ": 0 wins, 27 ties, 0 losses on 9 prompts" in out
        assert "the longer response wins – of no pairs where one is longer" in out


def test_swapping_the_policies_swaps_the_outcomes(winrate, tmp_path):
    for name, order in (("ab", ("one", "other")), ("ba", ("other", "one"))):
        assert winrate(*order, "--judge", "pipeline", "--samples", 2, "--out", tmp_path / name)[0] == 0
    forth, back = records(tmp_path / "ab"), records(tmp_path / "ba")
    assert [(p["a"], p["b"], p["outcome"]) for p in forth] == [(p["b"], p["a"], 1 - p["outcome"]) for p in back]
    assert any(pair["outcome"] != 0.5 for pair in forth)


@pytest.mark.parametrize(
    ("arguments", "task", "line"),
    [
        (("one", "--judge", "gold"), Animals, "the following arguments are required: b"),
        (("one", "other"), Animals, "the following arguments are required: --judge"),
        (("one", "other", "--judge", "gold"), None, "--config TASK.yaml is missing"),
        (("one", "other", "--judge", "gold"), Task, "winrate needs prompts, which task Task does not provide"),
        (("one", "nothing", "--judge", "gold"), Animals, "nothing does not exist"),
        (("one", "other", "--judge", "one"), Animals, "no fitting weights for score.weight"),
        (("one", "other", "--judge", "gold", "--samples", "0"), Animals, "--samples: invalid positive value: '0'"),
    ],
)
def test_mistakes_are_one_line(winrate, arguments, task, line):
    status, out, err = winrate(*arguments, task=task)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err
