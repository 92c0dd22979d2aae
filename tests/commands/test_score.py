import json

import pytest
import tiny_models

from rlhf_lightning.__main__ import main
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.tasks.assistant import Assistant

TASK = ("--config", "configs/tasks/assistant.yaml")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pipeline with a reward model, a lone policy, and answers to score."""
    folder = tmp_path_factory.mktemp("scored")
    reward_model = tiny_models.reward_model("llama")
    reward_model.centers.fill_(0.25)
    reward_model.save(folder / "pipeline" / "reward" / "export")
    tiny_models.policy("llama").save(folder / "policy")
    answers = [
        {"prompt": "the cat sees", "response": "a dog", "note": 7},
        {"messages": [{"role": "user", "content": "blue"}, {"role": "assistant", "content": "red cow"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": ""},
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    task = Assistant()
    gold = [
        {"prompt": demonstration.prompt, "response": demonstration.response}
        for demonstration in task.demonstrations("heldout")[:5]
    ]
    (folder / "shop.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in gold))
    return folder


@pytest.fixture
def score(root, capsys, monkeypatch):
    """Run the command; its exit status, what it printed and what it complained about."""

    def run(*arguments):
        monkeypatch.chdir(root)
        status = main(["score", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def expected(root):
    """What the reward model says, asked from Python."""
    source = LearnedReward(str(root / "pipeline" / "reward" / "export"))
    prompts = ["the cat sees", [{"role": "user", "content": "blue"}], [{"role": "user", "content": "a"}]]
    return source.score(prompts, ["a dog", "red cow", ""]).tolist()


def test_scores_are_printed_beside_the_responses_with_mean_and_spread(score, expected):
    status, out, err = score("answers.jsonl", "--reward", "pipeline")
    assert (status, err) == (0, "")
    *lines, last = out.splitlines()
    assert lines == [f"{s:+.3f}  {r}" for s, r in zip(expected, ["a dog", "red cow", ""], strict=True)]
    mean = sum(expected) / 3
    spread = (sum((s - mean) ** 2 for s in expected) / 2) ** 0.5
    assert last == f"mean {mean:.4f}, standard deviation {spread:.4f}, 3 responses"


def test_out_holds_the_records_with_their_scores(score, expected, root, tmp_path):
    target = tmp_path / "new" / "scored.jsonl"
    status, out, _ = score("answers.jsonl", "--reward", "pipeline/reward", "--out", target)
    assert status == 0
    assert out.splitlines()[0] == f"wrote 3 scores to {target}"
    found = records(target)
    assert [record.pop("score") for record in found] == pytest.approx(expected, abs=1e-6)
    assert found == records(root / "answers.jsonl")
    assert [file.name for file in target.parent.iterdir()] == ["scored.jsonl"]


def test_scores_do_not_depend_on_the_batch_size(score, tmp_path):
    for size in (1, 2):
        assert (
            score("answers.jsonl", "--reward", "pipeline", "--batch_size", size, "--out", tmp_path / f"{size}")[0] == 0
        )
    one, two = ([r["score"] for r in records(tmp_path / str(size))] for size in (1, 2))
    assert one == pytest.approx(two, abs=1e-5)


def test_gold_scores_come_from_the_task(score, root, tmp_path):
    assert score("shop.jsonl", "--gold", *TASK, "--out", tmp_path / "gold.jsonl")[0] == 0
    answers = records(root / "shop.jsonl")
    gold = Assistant().gold().judge([a["prompt"] for a in answers], [a["response"] for a in answers]).scores
    assert [r["score"] for r in records(tmp_path / "gold.jsonl")] == pytest.approx(gold.tolist(), abs=1e-6)


@pytest.mark.parametrize("override", [("--task.init_args.entities=24",), ("--task.init_args.entities", "24")])
def test_task_can_be_changed_before_or_after_the_file(score, override, capsys):
    """With other products, some of the prompts are unknown or their answers wrong."""
    plain = score("shop.jsonl", "--gold", *TASK)
    after, before = score("shop.jsonl", "--gold", *TASK, *override), score(*override, "shop.jsonl", "--gold", *TASK)
    assert after == before != plain


def test_one_response_has_no_spread(score, root, tmp_path):
    (tmp_path / "one.jsonl").write_text((root / "answers.jsonl").read_text().splitlines()[0])
    out = score(tmp_path / "one.jsonl", "--reward", "pipeline")[1]
    assert out.splitlines()[-1].endswith("standard deviation 0.0000, 1 responses")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "the following arguments are required: file"),
        (("answers.jsonl",), "needs exactly one of --reward PATH and --gold"),
        (("answers.jsonl", "--reward", "pipeline", "--gold", *TASK), "needs exactly one of --reward PATH and --gold"),
        (("answers.jsonl", "--gold"), "--gold needs the task: --config configs/tasks/assistant.yaml"),
        (("answers.jsonl", "--gold", *TASK), "the assistant task does not know the prompt"),
        (("nothing.jsonl", "--reward", "pipeline"), "nothing.jsonl: no such file"),
        (("nothing.jsonl", "--reward", "nothing"), "nothing.jsonl: no such file"),
        (("answers.jsonl", "--reward", "runs/nothing"), "runs/nothing does not exist"),
        (("answers.jsonl", "--reward", "policy"), "no fitting weights for score.weight"),
        (("answers.jsonl", "--reward", "pipeline", "--batch_size", "0"), "--batch_size: invalid positive value: '0'"),
        (("answers.jsonl", "--reward", "pipeline", "--outt", "x"), "unrecognized arguments: --outt"),
        (("answers.jsonl", "more", "--reward", "pipeline"), "unrecognized arguments: more"),
        (("answers.jsonl", "--reward", "pipeline", "--out", "policy"), "argument --out: policy is a directory"),
        (("answers.jsonl", "--gold", "--config", "nothing.yaml"), "--config nothing.yaml: no such file"),
        (("answers.jsonl", "--gold", *TASK, "--task.init_args.sed=1"), "unknown key task.init_args.sed"),
        (("answers.jsonl", "--gold", *TASK, "--task.init_args.entities=999"), "between 16 and 24 entities, got 999"),
        (("policy/config.json", "--reward", "pipeline"), "policy/config.json"),
    ],
)
def test_mistakes_are_one_line(score, arguments, line):
    status, out, err = score(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


def test_failure_leaves_the_old_file_as_it_was(score, tmp_path):
    target = tmp_path / "scored.jsonl"
    target.write_text("before\n")
    assert score("answers.jsonl", "--gold", *TASK, "--out", target)[0] == 2
    assert target.read_text() == "before\n"
    assert [file.name for file in tmp_path.iterdir()] == ["scored.jsonl"]
