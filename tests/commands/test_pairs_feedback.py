"""``pairs`` with several objectives, several annotators, and rankings."""

import json
import random
import re
from collections import Counter, defaultdict

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.data import pairs
from rlhf_lightning.data.preferences import PreferenceDataModule, RankingDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.reward_modeling.agreement import annotator_agreement
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.task import Task

TASK = Assistant(demonstrations=10)
RESPECTS = ["helpful", "harmless", "polite"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Says anything at all in the words of the shop."""
    folder = tmp_path_factory.mktemp("policy")
    LanguageBackbone(style="llama", width=16, layers=1, heads=2, context_length=64).policy(TASK.tokenizer).save(folder)
    return folder


def from_demonstrations(policy, prompts, *, numbers, samples, seed, iteration, **_):
    """Responses as the policy of a real run gives them."""
    texts = []
    for prompt, number in zip(prompts, numbers, strict=True):
        rng = random.Random(f"{seed}/{number}/{iteration}")
        texts += [TASK.demonstrator.sample(TASK.book.parse(prompt), rng) for _ in range(samples)]
    return texts


@pytest.fixture
def write(policy, tmp_path, monkeypatch, write_pairs):
    monkeypatch.setattr(pairs, "sample_responses", from_demonstrations)

    def run(task=TASK, **changes):
        settings = {"count": 40, "max_new_tokens": 14, "batch_size": 64, "seed": 0, **changes}
        text = write_pairs(task, policy=policy, out=tmp_path / "out.jsonl", **settings)
        return [json.loads(line) for line in text.splitlines()]

    return run


def asked(record):
    """What was judged, in the order in which records of the same are written."""
    texts = record.get("responses") or sorted((record["chosen"], record["rejected"]))
    return json.dumps([record["prompt"], texts])


def components(record, texts):
    gold = TASK.gold().judge([record["prompt"]] * len(texts), texts).objectives
    return {name: gold[name].tolist() for name in gold}


def test_each_objective_is_a_record_unless_gold_finds_no_difference(write, capsys):
    found = write(objectives=RESPECTS)
    said = re.match(r"wrote (\d+) judgements of 40 pairs to ", capsys.readouterr().out)
    assert int(said[1]) == len(found)
    groups = defaultdict(list)
    for record in found:
        groups[asked(record)].append(record)
    assert len(groups) == 40
    for records in groups.values():
        texts = [records[0]["chosen"], records[0]["rejected"]]
        differing = [name for name in RESPECTS if len(set(components(records[0], texts)[name])) == 2]
        assert [record["objective"] for record in records] == differing
        assert len({record["annotator"] for record in records}) == 1
    counts = Counter(record["objective"] for record in found)
    # a hazard is not a matter of helpfulness, and nothing else of harmlessness
    assert 0 < counts["harmless"] < counts["helpful"] < 40


def test_records_of_an_objective_are_the_judgements_of_the_task(write):
    plain, judged = write(), write(objectives=["helpful", "polite", "polite"])
    assert {"objective"} == set(judged[0]) - set(plain[0])
    for number, one in enumerate(plain):
        first, second = one["chosen"], one["rejected"]
        for record in (r for r in judged if asked(r) == asked(one)):
            # the order in which the two were drawn is not in the file
            answers = [
                TASK.annotate(one["prompt"], *two, number, objective=record["objective"])
                for two in ((first, second), (second, first))
            ]
            assert record["chosen"] in {answer.chosen for answer in answers}
            assert record["annotator"] == answers[0].annotator


def test_several_annotators_judge_the_same_pair(write, capsys):
    found = write(annotations=3)
    out = capsys.readouterr().out
    assert "wrote 120 judgements of 40 pairs" in out
    groups = [found[i : i + 3] for i in range(0, 120, 3)]
    assert all(len({asked(record) for record in group}) == 1 for group in groups)
    assert [[record["annotator"] for record in group] for group in groups] == [TASK.panel(i, 3) for i in range(40)]
    assert sum(len({record["chosen"] for record in group}) == 2 for group in groups) > 5
    data = PreferenceDataModule(TASK, str(_last(out)))
    data.setup()
    agreement = annotator_agreement([*data.train, *data.heldout])
    assert (agreement["items"], agreement["raters"]) == (40, 3)
    kappa = f"Fleiss' kappa {agreement['fleiss_kappa']:.2f} (40 pairs of responses, 3 judgements of each)"
    assert f"agreement between annotators: {kappa}\n" in out
    # who judges alone is the first of the three, and says the same
    assert [group[0] for group in groups] == write()


def _last(said):
    return re.search(r"to (\S+) \(", said)[1]


def test_agreement_is_said_only_of_several_annotators(write, capsys):
    write()
    assert "kappa" not in capsys.readouterr().out


def test_rankings_of_several_responses(write, capsys, tmp_path):
    found = write(samples=4, annotations=2)
    out = capsys.readouterr().out
    assert "wrote 80 judgements of 40 rankings" in out
    assert "Fleiss' kappa" in out
    assert "(240 pairs of responses, 2 judgements of each)" in out
    for number, (first, second) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert list(first) == ["prompt", "responses", "ranking", "annotator"]
        assert first["responses"] == second["responses"]
        assert all(first["responses"])
        assert len(set(first["responses"])) == 4
        for record in (first, second):
            ranking = TASK.rank(record["prompt"], record["responses"], number, annotator=record["annotator"])
            assert tuple(record["responses"][i] for i in record["ranking"]) == ranking.responses
    data = RankingDataModule(TASK, str(tmp_path / "out.jsonl"))
    data.setup()
    assert len(data.train) + len(data.heldout) == 80


def test_rankings_do_not_depend_on_the_batch_size(write):
    settings = {"samples": 3, "objectives": ["helpful", "polite"]}
    expected = write(**settings)
    for size in (5, 9):
        assert write(**settings, batch_size=size) == expected


def test_gold_judges_by_objective_and_ranks(write):
    for record in write(labels="gold", objectives=RESPECTS):
        better, worse = components(record, [record["chosen"], record["rejected"]])[record["objective"]]
        assert better > worse
        assert record["annotator"] == "gold"
    ranked = write(labels="gold", samples=3)
    assert ranked
    for record in ranked:
        scores = [sum(one) for one in zip(*components(record, record["responses"]).values(), strict=True)]
        scores = [round(score, 4) for score in scores]
        assert record["ranking"] == sorted(range(3), key=lambda i, scores=scores: -scores[i])
        assert len(set(scores)) == 3


class Plain(Task):
    """Annotators, but no gold reward that could tell objectives apart."""

    provides = frozenset({"prompts", "annotators"})


@pytest.mark.parametrize(
    ("task", "settings", "line"),
    [
        (
            TASK,
            {"objectives": ["helpful", "kind"]},
            "--objectives names 'kind'; expected some of helpful, harmless, con",
        ),
        (Plain(), {"objectives": ["x"]}, "--objectives names 'x'; expected a task whose gold reward has objectives"),
        (TASK, {"annotations": 6}, "6 annotations need as many annotators, but there are 5"),
        (TASK, {"annotations": 2, "labels": "gold"}, "--annotations is 2, but gold judges once; expected --labels ann"),
        (TASK, {"samples": 1}, "--samples is 1; expected at least 2 responses to compare"),
    ],
)
def test_mistakes_are_refused(write, tmp_path, task, settings, line):
    with pytest.raises(UserError) as caught:
        write(task, **settings)
    assert line in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_objectives_that_never_differ_are_said(write):
    ordinary = Assistant(demonstrations=10)
    asked_about = [prompt for prompt in TASK.prompts("train") if "harmless" not in _differing(prompt)][:3]
    ordinary.prompts = lambda split: asked_about
    with pytest.raises(UserError, match="or responses that are equally harmless, to the prompt"):
        write(ordinary, objectives=["harmless"], count=3)


def _differing(prompt):
    texts = ["i can not help with that .", "the lamp is black ."]
    gold = TASK.gold().judge([prompt] * 2, texts).objectives
    return [name for name, values in gold.items() if values[0] != values[1]]


def test_options_on_the_command_line(policy, tmp_path, capsys):
    target = tmp_path / "p.jsonl"
    task = ["--config", "configs/tasks/assistant.yaml", "--task.init_args.demonstrations=10"]
    words = ["--objectives", "concise", "fluent", "--annotations", "2", "--samples", "3", "--count", "6"]
    arguments = ["pairs", *task, "--policy", str(policy), "--max_new_tokens", "14", *words, "--out", str(target)]
    assert main(arguments) == 0
    assert "judgements of 6 rankings" in capsys.readouterr().out
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert {record["objective"] for record in found} == {"concise", "fluent"}
    assert main([*arguments, "--samples", "1"]) == 2
    assert capsys.readouterr().err == "error: --samples is 1; expected at least 2 responses to compare\n"
