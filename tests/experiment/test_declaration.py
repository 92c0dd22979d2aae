"""What was declared stays as it was: other declarations get folders of their own, added seeds are written down."""

import copy
import json

import pytest
from declared import experiment

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.comparison import ArmComparison
from rlhf_lightning.experiment.declaration import read_declaration


def opened(tmp_path, declared, **options):
    found = ArmComparison.of(
        declared,
        declared.budget(next(iter(declared.budgets))),
        runs_dir=tmp_path / "runs",
        results_dir=tmp_path / "results",
        **options,
    )
    found.declare()
    return found


def folders(comparison):
    return comparison.runs.name, comparison.results.name


def test_nothing_is_written_before_it_is_declared(tmp_path):
    declared = experiment()
    ArmComparison.of(declared, declared.budget("paper"), runs_dir=tmp_path / "runs", results_dir=tmp_path / "results")
    assert not list(tmp_path.iterdir())


def test_the_same_declaration_finds_its_folders_again(tmp_path):
    first = opened(tmp_path, experiment())
    second = opened(tmp_path, experiment(title="In other words", question="Why?", source={"paper": "Somebody"}))
    assert folders(first) == folders(second) == ("try-paper", "try-paper")
    kept = read_declaration(first.results)
    assert kept.all_seeds == list(range(1, 9))
    assert not kept.later


def test_other_claims_are_another_result_of_the_same_runs(tmp_path):
    opened(tmp_path, experiment())
    second = opened(tmp_path, experiment(claims=[{"better": ["one", "two"]}]))
    assert folders(second) == ("try-paper", "try-paper-2")
    before = read_declaration(tmp_path / "results" / "try-paper")
    assert before.later["folder"] == "try-paper-2"
    assert before.later["differs_in"] == ["claims"]


def test_other_arms_are_other_runs(tmp_path):
    opened(tmp_path, experiment())
    arms = copy.deepcopy(experiment().content["arms"])
    arms["one"]["policy"]["model.init_args.lam"] = 0.8
    second = opened(tmp_path, experiment(arms=arms))
    assert folders(second) == ("try-paper-2", "try-paper-2")
    assert read_declaration(tmp_path / "results" / "try-paper").later["differs_in"] == [
        "arms.one.policy.model.init_args.lam"
    ]
    assert folders(opened(tmp_path, experiment())) == ("try-paper", "try-paper"), "the first is still there"


def test_a_configuration_that_changed_is_another_declaration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("trainer: {max_epochs: 3}\n")
    pipeline = {"policy": {"config": ["configs/algorithms/ppo.yaml", "own.yaml"]}}
    opened(tmp_path, experiment(pipeline=pipeline))
    (tmp_path / "own.yaml").write_text("# a comment\ntrainer: {max_epochs: 3}\n")
    assert folders(opened(tmp_path, experiment(pipeline=pipeline)))[0] == "try-paper"
    (tmp_path / "own.yaml").write_text("trainer: {max_epochs: 4}\n")
    assert folders(opened(tmp_path, experiment(pipeline=pipeline)))[0] == "try-paper-2"


def test_added_seeds_are_written_down_with_their_date(tmp_path):
    opened(tmp_path, experiment(seeds=2))
    second = opened(tmp_path, experiment(seeds=2), more_seeds=2)
    assert second.budget.seeds == (1, 2, 3, 4)
    entries = read_declaration(second.results).seeds
    assert [entry["seeds"] for entry in entries] == [[1, 2], [3, 4]]
    assert all(entry["declared"] for entry in entries)
    assert opened(tmp_path, experiment(seeds=2)).budget.seeds == (1, 2, 3, 4), "they stay"


def test_more_seeds_are_none_of_the_tuning(tmp_path):
    space = {"one": {"model.init_args.lam": {"values": [0.5, 1.0]}}}
    declared = experiment(seeds=2, tune={"trials": 2, "seeds": [3], "space": space})
    assert opened(tmp_path, declared, more_seeds=2).budget.seeds == (1, 2, 4, 5)
    with pytest.raises(UserError, match=r"seeds \[3\] are those of the tuning"):
        opened(tmp_path, declared, seeds=[2, 3])


def test_unequal_budgets_are_refused_before_anything_runs(tmp_path):
    arms = {"one": {}, "two": {"policy": {"trainer.max_epochs": 8}}}
    with pytest.raises(UserError) as error:
        opened(tmp_path, experiment(arms=arms))
    assert "equal is samples, but one will use 512 sampled responses and two 1,024" in str(error.value)
    assert not list(tmp_path.iterdir())
    assert opened(tmp_path, experiment(arms=arms, equal=None)), "unless they are not to be equal"


def test_unknown_arm(tmp_path):
    with pytest.raises(UserError, match=r"--arms tow: did you mean two\?"):
        opened(tmp_path, experiment(), arms=["tow"])


def test_a_folder_without_a_declaration(tmp_path):
    (tmp_path / "declaration.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(UserError, match="holds no declared comparison"):
        read_declaration(tmp_path)
