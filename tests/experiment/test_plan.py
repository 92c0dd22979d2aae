"""From declarations to commands: what arms share, and what differs."""

from pathlib import Path

from declared import experiment

from rlhf_lightning.experiment.comparison import ArmComparison
from rlhf_lightning.experiment.plan import ComparisonPlan, all_stages
from rlhf_lightning.experiment.tuning import chosen_settings, random_settings, trial_table, trials

LANGUAGE = {
    "config": "configs/tasks/assistant.yaml",
    "pipeline": {
        "sft": {"config": "configs/algorithms/sft.yaml"},
        "pairs": {"count": 100},
        "reward": {"config": "configs/algorithms/reward.yaml"},
        "policy": {"config": "configs/algorithms/ppo.yaml", "reward": "learned"},
    },
    "claims": None,
}


def planned(declared, budget="paper", **changes):
    return ComparisonPlan(declared, declared.budgets[budget], Path("runs/x"), **changes).runs()


def places(runs):
    return [str(stage.directory) for stage in all_stages(runs)]


def test_arms_of_a_seed_share_what_comes_before_them():
    runs = planned(experiment(**LANGUAGE, seeds=[1, 2]))
    assert places(runs) == [
        f"runs/x/seed-{seed}/{name}" for seed in (1, 2) for name in ("sft", "pairs", "reward", "one", "two")
    ]
    assert [(run.arm, run.seed, run.directory.name) for run in runs[:2]] == [("one", 1, "one"), ("two", 1, "two")]


def test_an_arm_with_other_pairs_has_its_own_pairs_and_reward_model():
    arms = {"few": {}, "many": {"pairs": {"count": 500}}, "again": {"pairs": {"count": 500}, "policy": {"x": 1}}}
    runs = planned(experiment(**LANGUAGE | {"arms": arms}, seeds=[1]))
    names = {run.arm: [stage.directory.name for stage in run.stages] for run in runs}
    assert names["few"] == ["sft", "pairs", "reward", "few"]
    assert names["many"] == ["sft", "pairs-many", "reward-many", "many"]
    assert names["again"] == ["sft", "pairs-many", "reward-many", "again"]
    command = runs[1].stages[2].command
    assert command[command.index("--data.init_args.pairs") + 1] == "runs/x/seed-1/pairs-many/pairs.jsonl"
    assert command[command.index("--name") + 1] == "reward-many"


def test_a_limited_budget_runs_only_its_arms_and_tasks(tmp_path):
    tasks = {name: {"config": f"configs/tasks/{name}.yaml", "scale": [0, 1]} for name in ("bandit", "arithmetic")}
    declared = experiment(
        tasks=tasks, config=None, budgets={"smoke": {"seeds": 2, "arms_only": "two", "tasks_only": "arithmetic"}}
    )
    comparison = ArmComparison.of(
        declared, declared.budgets["smoke"], runs_dir=tmp_path / "runs", results_dir=tmp_path / "results"
    )
    for runs in (comparison.planned_runs(), comparison.declared_runs()):
        assert [(run.arm, run.task, run.seed) for run in runs] == [("two", "arithmetic", 1), ("two", "arithmetic", 2)]


def test_stages_that_an_arm_does_not_need_are_left_out():
    runs = planned(experiment(**LANGUAGE | {"arms": {"gold": {"policy": {"reward": "gold"}}}}, seeds=[1]))
    assert places(runs) == ["runs/x/seed-1/sft", "runs/x/seed-1/gold"]


def test_an_arm_may_end_with_another_stage():
    pipeline = {key: value for key, value in LANGUAGE["pipeline"].items() if key != "policy"}
    runs = planned(experiment(**LANGUAGE | {"pipeline": pipeline, "arms": {"joint": {}}, "equal": None}, seeds=[1]))
    assert places(runs)[-1] == "runs/x/seed-1/joint"
    assert runs[0].stages[-1].command[:1] == ["fit"]


def test_every_stage_has_the_seed_of_its_run():
    for run in planned(experiment(**LANGUAGE, seeds=[7])):
        for stage in run.stages:
            option = "--seed_everything" if stage.command[0] == "fit" else "--seed"
            assert stage.command[stage.command.index(option) + 1] == "7"


def test_tasks_have_folders_of_their_own():
    tasks = {name: {"config": f"configs/tasks/{name}.yaml", "scale": [0, 1]} for name in ("cartpole", "acrobot")}
    runs = planned(experiment(config=None, tasks=tasks, seeds=[1], equal=None, claims=None))
    assert [str(run.directory) for run in runs] == [
        f"runs/x/{task}/seed-1/{arm}" for task in tasks for arm in ("one", "two")
    ]


def test_chosen_settings_stand_last():
    run = planned(experiment(seeds=[1]), settings={"one": {"model.init_args.lam": 0.123}})[0]
    assert run.stages[-1].command[-2:] == ["--model.init_args.lam", "0.123"]


TUNE = {
    "trials": 3,
    "seeds": [101, 102],
    "space": {
        "one": {"model.init_args.lam": {"min": 0.0, "max": 1.0}},
        "two": {"model.init_args.lam": {"values": [0.1, 0.2, 0.3, 0.4]}},
    },
}


def test_every_arm_gets_the_same_number_of_trials_on_other_seeds():
    declared = experiment(tune=TUNE)
    tried = trials(declared, declared.budgets["paper"], Path("runs/x"))
    assert [(trial.arm, trial.number) for trial in tried] == [(arm, n) for arm in ("one", "two") for n in range(3)]
    assert [trial.settings for trial in tried if trial.number == 0] == [{}, {}], "the first is the arm as shipped"
    assert {run.seed for trial in tried for run in trial.runs} == {101, 102}
    assert str(tried[1].runs[0].directory) == "runs/x/tuning/seed-101/one-1"
    lam = tried[1].settings["model.init_args.lam"]
    assert tried[1].runs[0].stages[-1].command[-2:] == ["--model.init_args.lam", str(lam)]


def test_drawn_settings_are_always_the_same():
    space = experiment(tune=TUNE).tuning.spaces["one"]
    drawn = random_settings(space, 5)
    assert drawn == random_settings(space, 5)
    assert drawn[:2] == random_settings(space, 2), "more trials keep those before"
    assert len({str(one) for one in drawn}) == 5
    assert all(0 <= one["model.init_args.lam"] <= 1 for one in drawn)


def test_the_best_mean_is_chosen_and_a_failed_run_never_is():
    declared = experiment(tune=TUNE)
    tried = trials(declared, declared.budgets["paper"], Path("runs/x"))
    values = {"one-0": (0.5, 0.5), "one-1": (0.9, float("nan")), "one-2": (0.7, 0.4), "two-0": (0.1, 0.1)}
    table = trial_table(
        declared, tried, lambda run: values.get(run.directory.name, (0.1, 0.1))[run.seed - 101]
    ).set_index(["arm", "trial"])
    assert table["chosen"].sum() == 2
    assert table.loc[("one", 2), "chosen"], "0.55 is more than 0.5, and 0.9 beside a failure counts for nothing"
    assert table.loc[("two", 0), "chosen"], "of equal trials the first"
    assert chosen_settings(table.reset_index())["one"] == tried[2].settings
