import json
import re
from collections import Counter

import pytest
import tiny_models
import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import PreferencePair

TASK = ("--config", "configs/tasks/assistant.yaml", "--task.init_args.demonstrations=10")


class LettersOfPrompt(RewardSource):
    """How many of a response's letters its prompt has: whole numbers, so that there are ties."""

    def score(self, prompts, responses):
        pairs = zip(prompts, responses, strict=True)
        return torch.tensor([sum(letter in prompt for letter in set(text)) // 2 for prompt, text in pairs]).float()


class Ranked(Task):
    """Five prompts; the annotators prefer what comes first in the alphabet, gold does not."""

    provides = frozenset({"prompts", "annotators"})

    def prompts(self, split):
        return [f"the {word}" for word in ("cat", "dog", "cow", "red", "blue")]

    def annotate(self, prompt, first, second, index):
        return PreferencePair(prompt, *sorted((first, second)), annotator=f"number {index}")

    def gold(self):
        return LettersOfPrompt()


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


@pytest.fixture
def write(root, write_pairs):
    """Pairs of the task with five prompts."""

    def run(path, **changes):
        settings = {"policy": root / "animals", "count": 12, "max_new_tokens": 6, "batch_size": 8, "seed": 0, **changes}
        write_pairs(Ranked(), out=path, **settings)
        return records(path)

    return run


def test_pairs_of_the_task_are_annotated_and_can_be_trained_on(pairs, tmp_path):
    target = tmp_path / "new" / "pairs.jsonl"
    status, out, err = pairs(*TASK, "--count", "24", "--out", target)
    assert (status, err) == (0, "")
    assert re.fullmatch(rf"wrote 24 pairs to {target} \(\d+ responses sampled\)\n", out)
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


def test_prompts_are_taken_in_whole_passes(write, tmp_path):
    found = write(tmp_path / "p.jsonl", count=12)
    taken = [record["prompt"] for record in found]
    everything = sorted(Ranked().prompts("train"))
    assert sorted(taken[:5]) == sorted(taken[5:10]) == everything
    assert Counter(taken).most_common()[-1][1] >= 2
    assert [record["annotator"] for record in found] == [f"number {i}" for i in range(12)]
    assert all(record["chosen"] < record["rejected"] for record in found)


def test_pairs_do_not_depend_on_the_batch_size(write, tmp_path):
    expected = write(tmp_path / "p.jsonl")
    for size in (1, 2, 6, 100):
        assert write(tmp_path / "q.jsonl", batch_size=size) == expected


def test_pairs_depend_on_the_seed_alone(write, tmp_path):
    expected = write(tmp_path / "p.jsonl")
    torch.manual_seed(9)
    assert write(tmp_path / "q.jsonl") == expected
    assert write(tmp_path / "q.jsonl", seed=1) != expected
    assert write(tmp_path / "q.jsonl", count=7) == expected[:7]


def test_equal_responses_are_drawn_again(write, tmp_path):
    """With one token per response, the two are often equal at first, or empty."""
    found = write(tmp_path / "p.jsonl", max_new_tokens=1, count=40)
    assert all(record["chosen"] != record["rejected"] and record["chosen"] for record in found)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [("annotators", "an empty response or twice the same"), ("gold", "responses of equal gold reward")],
)
def test_policy_that_always_says_the_same_is_refused(write, tmp_path, labels, complaint):
    policy = tiny_models.policy("llama", scale=4000.0)
    policy.save(tmp_path / "stubborn")
    changes = {"count": 5, "max_new_tokens": 1, "labels": labels}
    with pytest.raises(UserError, match=f"20 times {complaint} to the prompt 'the ") as refused:
        write(tmp_path / "p.jsonl", policy=tmp_path / "stubborn", **changes)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "p.jsonl").exists()


def test_prompt_that_always_gets_the_same_is_left_out_and_counted(write, tmp_path, capsys):
    policy = tiny_models.policy("llama", scale=400.0)
    policy.save(tmp_path / "stubborn")
    found = write(tmp_path / "p.jsonl", policy=tmp_path / "stubborn", max_new_tokens=1, count=5)
    said = capsys.readouterr().out
    assert 0 < len(found) < 5
    sampled = re.fullmatch(
        rf"wrote {len(found)} pairs to .* \((\d+) responses sampled; left out {5 - len(found)} prompts without one\)\n",
        said,
    )
    assert sampled is not None
    # the first draw of all five, and 19 more of those that are left out
    assert int(sampled[1]) >= 2 * (5 + 19 * (5 - len(found)))


def test_gold_prefers_the_higher_reward_and_draws_ties_again(write, tmp_path):
    found = write(tmp_path / "p.jsonl", labels="gold", count=40)
    annotated = write(tmp_path / "q.jsonl", count=40)
    assert len(found) == 40
    gold, ties = LettersOfPrompt(), 0
    for own, other in zip(found, annotated, strict=True):
        assert own["prompt"] == other["prompt"]
        assert own["annotator"] == "gold"
        assert "margin" not in own
        better, worse = gold.score([own["prompt"]] * 2, [own["chosen"], own["rejected"]])
        assert better > worse
        first = gold.score([other["prompt"]] * 2, [other["chosen"], other["rejected"]])
        ties += int(first[0] == first[1])
        if first[0] != first[1]:  # what annotators see is judged as it is
            assert {own["chosen"], own["rejected"]} == {other["chosen"], other["rejected"]}
    assert 0 < ties < 40
    assert any(own["chosen"] > own["rejected"] for own in found)


def test_gold_pairs_do_not_depend_on_the_batch_size(write, tmp_path):
    expected = write(tmp_path / "p.jsonl", labels="gold")
    for size in (1, 6, 100):
        assert write(tmp_path / "q.jsonl", labels="gold", batch_size=size) == expected


def test_gold_pairs_of_a_task_without_gold_are_refused(tmp_path, pairs):
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "the {i}"}}\n' for i in range(4)))
    task = ("--task", "TextTask", f"--task.init_args.path={tmp_path / 'prompts.jsonl'}")
    status, out, err = pairs(*task, "--labels", "gold", "--out", tmp_path / "p.jsonl")
    assert (status, out) == (2, "")
    assert err == "error: --labels gold needs a task with a gold reward, which TextTask has not got\n"


def test_gold_pairs_are_asked_for_on_the_command_line(pairs, tmp_path):
    target = tmp_path / "pairs.jsonl"
    status, _, err = pairs(*TASK, "--labels", "gold", "--count", "8", "--out", target)
    assert (status, err) == (0, "")
    found = records(target)
    assert found
    for record in found:
        better, worse = Assistant().gold().judge([record["prompt"]] * 2, [record["chosen"], record["rejected"]]).scores
        assert better > worse


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
        ((*TASK, "--out", "p.jsonl", "--labels", "silver"), "argument --labels: invalid choice: 'silver'"),
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
