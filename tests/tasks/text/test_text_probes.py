"""Changes that leave what a text says as it is."""

import json

import pytest

from rlhf_lightning.tasks.task import Task
from rlhf_lightning.tasks.text.probes import COURTEOUS, FILLERS, NEUTRAL, text_probes
from rlhf_lightning.tasks.text.task import TextTask
from rlhf_lightning.types import Demonstration

DEMONSTRATIONS = [Demonstration(f"q{n}", f"First, number {n}.  Is it? Yes, it is!") for n in range(7)]


def test_probes_by_hand():
    found = text_probes([Demonstration("q", " One. Two! ")], 5)
    assert found == {
        "length": [("q", "One. Two!", f"One. Two! {FILLERS[0]}")],
        "repetition": [("q", "One. Two!", "One. Two! Two!")],
        "politeness": [("q", f"{NEUTRAL[0]} One. Two!", f"{COURTEOUS[0]} One. Two!")],
    }


def test_politeness_leaves_the_number_of_words_alone():
    for _, plain, changed in text_probes(DEMONSTRATIONS, 7)["politeness"]:
        assert len(plain.split()) == len(changed.split())
    assert len(COURTEOUS) == len(NEUTRAL) == len(FILLERS)


@pytest.mark.parametrize("name", ["length", "repetition", "politeness"])
def test_only_so_many_probes_and_none_of_long_or_empty_responses(name):
    odd = [Demonstration("q", "  "), Demonstration("q", "word " * 101)]
    found = text_probes([*odd, *DEMONSTRATIONS], 4)[name]
    assert [prompt for prompt, *_ in found] == ["q0", "q1", "q2", "q3"]


def test_a_text_task_probes_its_heldout_demonstrations(tmp_path):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "response": f"It is {n}."}) + "\n" for n in range(20)))
    task = TextTask(str(path), heldout_fraction=0.3)
    found = task.probes(100)["length"]
    assert [(prompt, plain) for prompt, plain, _ in found] == [
        (one.prompt, one.response) for one in task.demonstrations("heldout")
    ]
    assert len(found) > 1


def test_no_probes_without_responses(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}"}) + "\n" for n in range(5)))
    assert TextTask(str(path)).probes(10) == {}
    assert Task().probes(10) == {}
