import json
from collections import Counter

import pytest
import tiny_models
import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.commands.pairs import write_pairs
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import LanguageBackbone
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import PreferencePair

TASK = ("--config", "configs/tasks/assistant.yaml", "--task.init_args.demonstrations=10")


class Ranked(Task):
    """Five prompts; the annotators prefer what comes first in the alphabet."""

    provides = frozenset({"prompts", "annotators"})

    def prompts(self, split):
        return [f"the {word}" for word in ("cat", "dog", "cow", "red", "blue")]

    def annotate(self, prompt, first, second, index):
        return PreferencePair(prompt, *sorted((first, second)), annotator=f"number {index}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pipeline whose supervised model has the shop's vocabulary, and a policy of another one."""
    folder = tmp_path_factory.mktemp("pairs")
    backbone = LanguageBackbone(style="llama", width=16, layers=1, heads=2, context_length=32)
    backbone.policy(Assistant().tokenizer).save(folder / "pipeline" / "sft" / "export")
    tiny_models.policy("llama").save(folder / "animals")
    return folder


@pytest.fixture
def pairs(root, capsys, monkeypatch):
    """Run the command; its exit status, what it printed and what it complained about."""

    def run(*arguments, policy="pipeline"):
        monkeypatch.chdir(root)
        status = main(["pairs", "--policy", policy, "--max_new_tokens", "5", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(root, path, **changes):
    settings = {"count": 12, "max_new_tokens": 6, "batch_size": 8, "seed": 0, **changes}
    write_pairs(Ranked(), policy_path=str(root / "animals"), out=str(path), **settings)
    return records(path)


def test_pairs_of_the_task_are_annotated_and_can_be_trained_on(pairs, tmp_path):
    target = tmp_path / "new" / "pairs.jsonl"
    status, out, err = pairs(*TASK, "--count", "24", "--out", target)
    assert (status, out, err) == (0, f"wrote 24 pairs to {target}\n", "")
    assert [file.name for file in target.parent.iterdir()] == ["pairs.jsonl"]
    prompts = [p[0]["content"] for p in Assistant().prompts("train")]
    for number, record in enumerate(records(target)):
        assert record["chosen"] != record["rejected"]
        assert record["chosen"]
        assert record["rejected"]
        assert record["prompt"][0]["content"] in prompts
        judged = Assistant().annotate(record["prompt"], record["chosen"], record["rejected"], number)
        assert record["annotator"] == judged.annotator
        assert "margin" not in record
    data = PreferenceDataModule(Assistant(), str(target))
    data.setup()
    assert len(data.train) + len(data.heldout) == 24


def test_prompts_are_taken_in_whole_passes(root, tmp_path):
    found = write(root, tmp_path / "p.jsonl", count=12)
    taken = [record["prompt"] for record in found]
    everything = sorted(Ranked().prompts("train"))
    assert sorted(taken[:5]) == sorted(taken[5:10]) == everything
    assert Counter(taken).most_common()[-1][1] >= 2
    assert [record["annotator"] for record in found] == [f"number {i}" for i in range(12)]
    assert all(record["chosen"] < record["rejected"] for record in found)


def test_pairs_do_not_depend_on_the_batch_size(root, tmp_path):
    expected = write(root, tmp_path / "p.jsonl")
    for size in (1, 2, 6, 100):
        assert write(root, tmp_path / "q.jsonl", batch_size=size) == expected


def test_pairs_depend_on_the_seed_alone(root, tmp_path):
    expected = write(root, tmp_path / "p.jsonl")
    torch.manual_seed(9)
    assert write(root, tmp_path / "q.jsonl") == expected
    assert write(root, tmp_path / "q.jsonl", seed=1) != expected
    assert write(root, tmp_path / "q.jsonl", count=7) == expected[:7]


def test_equal_responses_are_drawn_again(root, tmp_path):
    """With one token per response, the two are often equal at first, or empty."""
    found = write(root, tmp_path / "p.jsonl", max_new_tokens=1, count=40)
    assert all(record["chosen"] != record["rejected"] and record["chosen"] for record in found)


def test_policy_that_always_says_the_same_is_refused(root, tmp_path):
    policy = tiny_models.policy("llama", scale=400.0)
    policy.save(tmp_path / "stubborn")
    with pytest.raises(UserError, match="20 times an empty response or twice the same to the prompt 'the "):
        write_pairs(
            Ranked(), policy_path=str(tmp_path / "stubborn"), out="x", count=5, max_new_tokens=1, batch_size=8, seed=0
        )


def test_task_without_annotators_is_refused(tmp_path, pairs):
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(4)))
    task = ("--task", "TextTask", f"--task.init_args.path={tmp_path / 'prompts.jsonl'}")
    status, out, err = pairs(*task, "--out", tmp_path / "p.jsonl")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "pairs needs annotators, which task TextTask does not provide" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--out", "p.jsonl"), "--config TASK.yaml is missing"),
        (TASK, "the following arguments are required: --out"),
        ((*TASK, "--out", "p.jsonl", "--count", "0"), "argument --count: invalid positive value: '0'"),
        ((*TASK, "--out", "p.jsonl", "--cout", "3"), "unrecognized arguments: --cout"),
        ((*TASK, "--out", "p.jsonl", "stray"), "unrecognized arguments: stray"),
        ((*TASK, "--out", "animals"), "argument --out: animals is a directory"),
        (("--config", "nothing.yaml", "--out", "p.jsonl"), "--config nothing.yaml: no such file"),
        ((*TASK, "--out", "p.jsonl", "--max_new_tokens", "32"), "no room for a prompt"),
        ((*TASK, "--out", "p.jsonl", "--task.init_args.entities", "-3"), "between 16 and 24 entities, got -3"),
        ((*TASK, "--out", "p.jsonl", "--task.init_args.entities", "x"), "task.init_args.entities: expected int"),
    ],
)
def test_mistakes_are_one_line(pairs, root, arguments, line):
    status, out, err = pairs(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err
    assert not (root / "p.jsonl").exists()


@pytest.mark.parametrize("policy", ["runs/nothing", "nothing"])
def test_missing_policy_is_one_line(pairs, policy):
    status, _, err = pairs(*TASK, "--out", "p.jsonl", policy=policy)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{policy} does not exist" in err
