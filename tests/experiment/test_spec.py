"""Declarations: what they mean, and what is refused in one line."""

import tomllib
from pathlib import Path

import pytest
from declared import CONTENT, experiment

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.aa import against_itself
from rlhf_lightning.experiment.spec import PRIMARY, overlaid
from rlhf_lightning.experiment.spec_file import read_experiment


def test_later_layers_replace_what_they_set_and_all_below_it():
    first = {"policy": {"model": {"init_args": {"kl": {"class_path": "KLControl", "init_args": {"coef": 0.1}}}}}}
    second = {"policy": {"model.init_args.kl": "AdaptiveKLControl", "model.init_args.kl.init_args.target": 4}}
    assert overlaid(first) == {
        "policy": {"model.init_args.kl": "KLControl", "model.init_args.kl.init_args.coef": 0.1},
    }
    assert overlaid(first, second) == {
        "policy": {"model.init_args.kl": "AdaptiveKLControl", "model.init_args.kl.init_args.target": 4},
    }
    assert overlaid(first, {"sft": {"trainer.max_steps": 3}})["sft"] == {"trainer.max_steps": 3}


def test_an_arm_for_each_combination_of_values():
    arms = {
        "b{beta}-w{width}": {"for": {"beta": [0, 0.1], "width": [32, 96]}, "policy": {"x": "{beta}", "y": "w{width}"}}
    }
    found = experiment(arms=arms, claims=None).arms
    assert list(found) == ["b0-w32", "b0-w96", "b0.1-w32", "b0.1-w96"]
    assert found["b0.1-w32"].pipeline == {"policy": {"x": 0.1, "y": "w32"}}, "a text that is only a name is the value"


def test_layers_of_budget_task_and_arm():
    found = experiment(
        budgets={"quick": {"policy": {"trainer.max_epochs": 9}, "arms": {"two": {"policy": {"trainer.max_epochs": 7}}}}}
    )
    quick, (task,) = found.budgets["quick"], found.tasks
    sections = {name: found.sections(arm, quick, task)["policy"] for name, arm in found.arms.items()}
    assert {name: section["trainer.max_epochs"] for name, section in sections.items()} == {"one": 9, "two": 7}
    assert (
        found.sections(found.arms["one"], quick, task, {"model.init_args.lam": 0.3})["policy"]["model.init_args.lam"]
        == 0.3
    )


def test_seeds_are_ten_unless_said():
    assert experiment(seeds=None).budgets["paper"].seeds == tuple(range(1, 11))
    assert experiment(budgets={"smoke": {"seeds": [3, 5]}, "paper": None}).budgets["smoke"].seeds == (3, 5)


def test_a_budget_may_be_limited_to_some_arms_and_tasks():
    tasks = {name: {"config": f"configs/tasks/{name}.yaml", "scale": [0, 1]} for name in ("bandit", "arithmetic")}
    budgets = {"smoke": {"arms_only": ["t*"], "tasks_only": ["bandit"]}, "paper": {}}
    found = experiment(tasks=tasks, config=None, budgets=budgets)
    smoke, paper = found.budgets["smoke"], found.budgets["paper"]
    assert (found.arms_of(smoke), found.arms_of(paper)) == (["two"], ["one", "two"])
    assert [task.name for task in found.tasks_of(smoke)] == ["bandit"]
    assert [task.name for task in found.tasks_of(paper)] == ["bandit", "arithmetic"]


def test_groups_are_named_by_patterns():
    found = experiment(groups={"both": "*", "first": ["one"]})
    assert found.groups == {"both": ["one", "two"], "first": ["one"]}


def test_aa_is_the_baseline_under_other_seeds():
    found = against_itself(experiment(baseline="two", budgets={"smoke": {"seeds": 2}}))
    arm, again = found.arms.values()
    assert arm.pipeline == again.pipeline == {"policy": {"model.init_args.lam": 1.0}}
    assert (arm.seed_offset, again.seed_offset) == (0, 10_000)
    assert [claim.arms for claim in found.claims] == [("two", "two again")]
    assert found.budgets["smoke"].seeds == (1, 2)


SPACE = {"one": {"model.init_args.lam": {"values": [0.5, 1.0]}}}
MISTAKES = {
    "unknown key": ({"armz": {}}, "unknown key 'armz'; did you mean arms?"),
    "unknown stage": ({"pipeline": {"polcy": {}}}, "pipeline: unknown key 'polcy'; did you mean policy?"),
    "no arms": ({"arms": {}}, "arms: expected a mapping"),
    "claim over a missing arm": ({"claims": [{"better": ["two", "three"]}]}, "unknown arm 'three'"),
    "unknown check": ({"claims": [{"bettr": ["two", "one"]}]}, "did you mean better?"),
    "unknown measure": ({"claims": [{"better": ["two", "one"], "measure": "klx"}]}, "unknown measure 'klx'"),
    "margin of 0 with equivalence": ({"margin": 0, "claims": [{"equivalent": ["two", "one"]}]}, "margin"),
    "best on the way": ({"metric": {"metric": "eval/score", "read": "max"}}, "max is refused"),
    "unknown unit": ({"equal": "sample"}, "did you mean samples?"),
    "unknown baseline": ({"baseline": "tow"}, "baseline tow: did you mean two?"),
    "group without members": ({"groups": {"x": "thr*"}}, "groups.x: no arm thr*"),
    "group called like an arm": ({"groups": {"one": "*"}}, "groups.one is the name of an arm, too"),
    "tuning seeds among the result's": ({"tune": {"trials": 2, "seeds": [8, 9], "space": SPACE}}, "[8] are seeds of"),
    "space of a missing arm": ({"tune": {"trials": 2, "seeds": [9], "space": {"tow": {}}}}, "did you mean two?"),
    "no trials": ({"tune": {"trials": 0, "seeds": [9], "space": SPACE}}, "tune.trials 0; expected a whole number"),
    "seeds twice": ({"seeds": [1, 1]}, "seeds [1, 1]; expected whole numbers, each once"),
    "arm of a budget": (
        {"budgets": {"quick": {"arms": {"tow": {}}}}},
        "budgets.quick.arms: no arm tow; did you mean two?",
    ),
    "arms that a budget is limited to": (
        {"budgets": {"quick": {"arms_only": ["tow"]}}},
        "budgets.quick.arms_only: no arm tow; did you mean two?",
    ),
    "tasks that a budget is limited to": (
        {"budgets": {"quick": {"tasks_only": ["a"]}}, "tasks": {"b": {"config": "b.yaml", "scale": [0, 1]}}},
        "budgets.quick.tasks_only: no task a",
    ),
    "name in braces": ({"arms": {"a{x}": {"for": {"y": [1]}}}}, "expected names in braces from y"),
    "scale of a task": ({"tasks": {"a": {"config": "b.yaml", "scale": [1, 1]}}}, "tasks.a.scale is [1, 1]"),
    "published text": ({"arms": {"one": {"published": "high"}}}, "arms.one.published is 'high'; expected a number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_line(mistake):
    changes, said = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        experiment(**changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_budget():
    with pytest.raises(UserError, match=r"--budget quik: did you mean quick\?"):
        experiment(budgets={"quick": {}}).budget("quik")


def test_a_file_is_called_like_its_name(tmp_path):
    import yaml

    path = tmp_path / "clip.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    found = read_experiment(path)
    assert (found.name, found.measures[PRIMARY].metric) == ("clip", "eval/score")
    with pytest.raises(UserError, match="no such file"):
        read_experiment(tmp_path / "clap.yaml")


def test_shipped_declarations_travel_with_the_package():
    root = Path(__file__).resolve().parents[2]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "force-include"
    ]
    shipped = {f"experiments/{path.name}" for path in (root / "experiments").glob("*.yaml")}
    assert {path for path in listed if path.startswith("experiments/")} == shipped
