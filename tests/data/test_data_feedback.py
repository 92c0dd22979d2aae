"""Pairs, rankings, ratings and labels as data: whose, in which respects, in which fold."""

from types import SimpleNamespace

import pytest

from rlhf_lightning.data.feedback import names_of_annotators, names_of_objectives
from rlhf_lightning.data.preferences import LabelDataModule, PreferenceDataModule, RankingDataModule, RatingDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.tasks.text import TextTask
from rlhf_lightning.tasks.text.prompts_io import write_jsonl

PEOPLE = ("ada", "bob", "eve")
RESPECTS = ("helpful", "concise")
ABC = {"responses": ["a", "b", "c"]}
KINDS = {
    PreferenceDataModule: {"chosen": "a", "rejected": "b"},
    RankingDataModule: {**ABC, "ranking": [2, 1, 0]},
    RatingDataModule: {"response": "a", "rating": 3},
    LabelDataModule: {"completion": "a", "label": False},
}


def rows(extra, count=30):
    """Each prompt twice, by one of three people, in one of two respects."""
    return [
        {
            "prompt": f"q {i % (count // 2)}",
            **extra,
            "annotator": PEOPLE[(i + i // 15) % 3],
            "objective": RESPECTS[i % 2],
        }
        for i in range(count)
    ]


@pytest.fixture
def module(tmp_path):
    """A data module of a kind, set up, of a file with the records."""

    def build(kind, records=None, **settings):
        path = tmp_path / "feedback.jsonl"
        write_jsonl(path, rows(KINDS[kind]) if records is None else records)
        data = kind(Assistant(), str(path), **settings)
        data.setup()
        return data

    return build


def everything(data):
    return [*data.train, *data.heldout]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_from_a_file_split_by_prompt(module, kind):
    data = module(kind, batch_size=4)
    train, heldout = ({one.prompt for one in part} for part in (data.train, data.heldout))
    assert train
    assert heldout
    assert not train & heldout
    assert len(everything(data)) == 30
    assert len(data.train_batch(0)) == 4
    assert names_of_annotators(data.train) == list(PEOPLE)
    assert names_of_objectives(data.train) == sorted(RESPECTS)


def test_kinds_read_what_they_are_named_after(module):
    assert module(PreferenceDataModule).train[0].responses == ("a", "b")
    assert module(RankingDataModule).train[0].responses == ("c", "b", "a")
    assert list(module(RatingDataModule).train[0].ratings.values()) == [3.0]
    assert module(LabelDataModule).train[0].label is False


def test_rankings_serve_as_pairs_and_pairs_as_rankings(module):
    pairs = module(PreferenceDataModule, rows(KINDS[RankingDataModule]))
    assert [pair.responses for pair in pairs.train[:3]] == [("c", "b"), ("c", "a"), ("b", "a")]
    assert len(everything(pairs)) == 90
    rankings = module(RankingDataModule, rows(KINDS[PreferenceDataModule]))
    assert {one.responses for one in everything(rankings)} == {("a", "b")}


def test_pairs_serve_as_labels(module):
    data = module(LabelDataModule, rows(KINDS[PreferenceDataModule]))
    assert [(one.response, one.label) for one in data.train[:4]] == [("a", True), ("b", False)] * 2
    assert len(everything(data)) == 60
    assert names_of_annotators(data.train) == list(PEOPLE)


@pytest.mark.parametrize("kind", KINDS)
def test_annotators_and_objectives_are_chosen(module, kind):
    data = module(kind, annotators=["ada", "eve"], heldout_fraction=0.5)
    assert {one.annotator for one in everything(data)} == {"ada", "eve"}
    assert len(everything(data)) == 20
    assert names_of_annotators(data.train) == ["ada", "eve"]
    data = module(kind, objectives=["concise"], annotators=["bob"], heldout_fraction=0.5)
    # records 1, 7, 13, 15, 21 and 27
    assert len(everything(data)) == 6
    assert names_of_objectives(data.train) == ["concise"]


def test_chosen_objectives_of_ratings_lose_the_others(module):
    records = [{"prompt": f"q {i}", "response": "a", "ratings": {"x": i, "y": -i}} for i in range(20)]
    records += [{"prompt": f"p {i}", "response": "a", "ratings": {"y": i}} for i in range(4)]
    data = module(RatingDataModule, records, objectives=["x"], heldout_fraction=0.4)
    assert sorted(one.ratings["x"] for one in everything(data)) == list(range(20))
    assert all(set(one.ratings) == {"x"} for one in everything(data))
    assert names_of_objectives(module(RatingDataModule, records, heldout_fraction=0.4).train) == ["x", "y"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"annotators": ["ada", "zoe"]}, "annotators names 'zoe'; expected some of ada, bob, eve"),
        ({"objectives": ["fluent"]}, "objectives names 'fluent'; expected some of concise, helpful"),
        ({"annotators": []}, "annotators names nobody; expected some of ada, bob, eve"),
        ({"objectives": []}, "objectives names nothing; expected some of concise, helpful"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"folds": 3, "fold": 3}, "fold must be from 0 to 2"),
        ({"folds": 3, "fold": -1}, "fold must be from 0 to 2"),
        ({"fold": 1}, "fold must be from 0 to 0 (folds is None), got 1"),
        ({"folds": 16}, "folds is 16, but there are 15 prompts; expected at most that"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_one_line(module, kind, settings, line):
    with pytest.raises(UserError) as caught:
        module(kind, **settings)
    assert str(caught.value).startswith(f"data.init_args.{line}")
    assert "\n" not in str(caught.value)


def test_names_are_refused_where_there_are_none(module):
    records = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    with pytest.raises(UserError, match="names 'ada'; expected null: the preferences name no annotators"):
        module(PreferenceDataModule, records, annotators=["ada"])
    data = module(PreferenceDataModule, records)
    assert (names_of_annotators(data.train), names_of_objectives(data.train)) == ([], [])


@pytest.mark.parametrize("kind", KINDS)
def test_folds_hold_out_every_prompt_once(module, kind):
    held = []
    for fold in range(4):
        data = module(kind, folds=4, fold=fold)
        train, heldout = ({one.prompt for one in part} for part in (data.train, data.heldout))
        assert not train & heldout
        assert len(train | heldout) == 15
        assert len(heldout) in (3, 4)
        held += heldout
    assert sorted(held) == sorted(f"q {i}" for i in range(15))


def test_folds_are_the_same_for_every_annotator_and_heldout_fraction(module):
    whole = {one.prompt for one in module(PreferenceDataModule, folds=2, fold=1).heldout}
    assert {one.prompt for one in module(PreferenceDataModule, folds=2, fold=1, heldout_fraction=0.5).heldout} == whole
    of_one = {one.prompt for one in module(PreferenceDataModule, folds=2, fold=1, annotators=["bob"]).heldout}
    assert of_one
    assert of_one < whole


def test_folds_of_a_task_take_what_it_holds_out_too(tmp_path):
    for name, start, stop in (("train", 0, 12), ("heldout", 12, 20)):
        records = ({"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(start, stop))
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    task = TextTask(str(tmp_path / "train.jsonl"), str(tmp_path / "heldout.jsonl"))
    held = []
    for fold in range(2):
        data = PreferenceDataModule(task, folds=2, fold=fold)
        data.setup()
        held += [one.prompt for one in data.heldout]
        assert len(data.train) == 10
    assert sorted(held) == sorted(f"q {i}" for i in range(20))


def test_eval_limit_bounds_a_fold(module):
    assert len(module(PreferenceDataModule, folds=2, eval_limit=3).heldout) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_missing_feedback_names_the_argument(kind):
    with pytest.raises(UserError, match=rf"data\.init_args\.{kind.option} is missing: task Control has no {kind.kind}"):
        kind(Control("CartPole-v1"))


def test_feedback_of_the_task_is_used_where_it_has_some():
    for kind in KINDS:
        of_task = {"train": ["a", "b"], "heldout": ["c"]}
        task = SimpleNamespace(provides=frozenset({kind.kind}), **{kind.kind: of_task.__getitem__})
        data = kind(task, batch_size=1)
        data.setup()
        assert (data.train, data.heldout) == (["a", "b"], ["c"])


def test_bad_records_of_the_file_are_dropped_where_that_is_asked_for(module):
    records = [*rows(KINDS[RankingDataModule]), {"prompt": "tie", **ABC, "ranks": [1, 1, 2]}]
    with pytest.raises(UserError, match=r"feedback\.jsonl:31: tied ranks"):
        module(RankingDataModule, records)
    assert len(everything(module(RankingDataModule, records, on_bad_pair="drop"))) == 30
