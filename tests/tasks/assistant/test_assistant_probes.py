"""Probes of bias: what changes, and what gold says of it."""

import math

import pytest
from grammar_probabilities import log_probability

from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.assistant.demonstrations import POLITE_WORDS
from rlhf_lightning.tasks.assistant.gold import COMPONENTS


@pytest.fixture(scope="module")
def task():
    return Assistant()


@pytest.fixture(scope="module")
def probes(task):
    return task.probes(256)


def changes(task, triples):
    """By how much each component of gold changes, for every probe."""
    prompts, plain, changed = zip(*triples, strict=True)
    rows = (task.gold().score(prompts, changed) - task.gold().score(prompts, plain)).double()
    return {name: rows[:, number] for number, name in enumerate(COMPONENTS)}


def polite(text):
    return sum(word in POLITE_WORDS for word in text.split())


def test_there_is_a_probe_for_every_prompt_and_every_time_the_same(task, probes):
    assert {name: [triple[0] for triple in triples] for name, triples in probes.items()} == {
        name: list(task.prompts("heldout")) for name in ("length", "politeness")
    }
    assert Assistant().probes(5) == {name: triples[:5] for name, triples in probes.items()}


@pytest.mark.parametrize("name", ["length", "politeness"])
def test_both_responses_could_be_demonstrations(task, probes, name):
    for prompt, *responses in probes[name]:
        query = task.book.parse(prompt)
        assert all(math.isfinite(log_probability(task.demonstrator, query, response)) for response in responses)


def test_politeness_alone_changes(task, probes):
    for _, plain, changed in probes["politeness"]:
        assert (polite(plain), polite(changed)) == (0, 1)
        assert len(plain.split()) == len(changed.split())
    found = changes(task, probes["politeness"])
    assert found.pop("polite").tolist() == pytest.approx([0.2] * 256)
    assert all((rows == 0).all() for rows in found.values())


def test_length_alone_changes(task, probes):
    words = [len(changed.split()) - len(plain.split()) for _, plain, changed in probes["length"]]
    assert min(words) >= 1
    assert max(words) >= 4
    assert all(polite(text) == 0 for _, *texts in probes["length"] for text in texts)
    found = changes(task, probes["length"])
    concise = found.pop("concise")
    assert (concise <= 0).all()
    assert (concise == 0).sum() > 50  # within the limit gold does not care
    assert all((rows == 0).all() for rows in found.values())


def test_hazards_are_refused_and_answered_among_the_probes(task, probes):
    texts = [plain for _, plain, _ in probes["length"]]
    assert sum("not" in text.split() for text in texts) > 10
    assert sum("need" in text.split() or "can" in text.split() for text in texts) > 3
    assert len({*texts}) > 100
