"""The shipped declarations: each is parsed, planned at every budget, can be decided by its seeds, and runs at smoke."""

from pathlib import Path

import pytest
import yaml

from rlhf_lightning.__main__ import main
from rlhf_lightning.cli.rehearsal import FitLine, mistakes_in
from rlhf_lightning.experiment.claims.together import why_impossible
from rlhf_lightning.experiment.comparison import ArmComparison
from rlhf_lightning.experiment.loading import load_comparison
from rlhf_lightning.experiment.plan import ComparisonPlan, all_stages
from rlhf_lightning.experiment.spec import with_seeds
from rlhf_lightning.experiment.spec_file import read_experiment
from rlhf_lightning.experiment.statistics.scores import FINISHED

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
BUDGETS = [
    pytest.param(path, budget, id=f"{path.stem}-{budget}")
    for path in SHIPPED
    for budget in yaml.safe_load(path.read_text(encoding="utf-8"))["budgets"]
]
NAMES = [pytest.param(path, id=path.stem) for path in SHIPPED]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def stages(path, budget_name, directory):
    """One run of each arm on the first task and of the first arm on the others, with all that comes before them."""
    experiment = read_experiment(path)
    budget = experiment.budget(budget_name)
    plan = ComparisonPlan(experiment, with_seeds(budget, budget.seeds[:1]), directory, arms=experiment.arms_of(budget))
    runs = plan.runs()
    return all_stages([run for run in runs if run.arm == runs[0].arm or run.task == runs[0].task])


@pytest.mark.parametrize("path", NAMES)
def test_says_what_it_is_about(path):
    experiment = read_experiment(path)
    assert experiment.title
    assert experiment.question
    assert experiment.claims
    assert {"smoke", "quick", "paper"} <= set(experiment.budgets)
    assert f"compare experiments/{path.name} " in path.read_text(encoding="utf-8"), "its head says how it is run"
    assert experiment.source.link.startswith("https://") or path.stem == "assistant_optimizers"


@pytest.mark.parametrize(("path", "budget"), BUDGETS)
def test_is_planned(path, budget, tmp_path):
    experiment = read_experiment(path)
    chosen = experiment.budget(budget)
    comparison = ArmComparison.of(experiment, chosen, runs_dir=tmp_path / "runs", results_dir=tmp_path / "results")
    tuned = [run for trial in comparison.tuning_trials(experiment.arms_of(chosen)) for run in trial.runs]
    planned = tuned or comparison.planned_runs()
    ran = {run.arm for run in planned}
    assert ran == set(experiment.arms_of(chosen))
    assert {run.seed for run in planned} == set(experiment.tuning.seeds if tuned else chosen.seeds)
    assert not {*chosen.seeds} & {*(experiment.tuning.seeds if experiment.tuning else ())}
    groups = {name for name, members in experiment.groups.items() if {*members} <= ran}
    assert any({*claim.arms} <= ran | groups for claim in experiment.claims), "something can be judged"


@pytest.mark.parametrize(("path", "budget"), [one for one in BUDGETS if one.values[1] != "smoke"])
def test_seeds_can_decide_every_claim(path, budget):
    experiment = read_experiment(path)
    chosen = experiment.budget(budget)
    assert why_impossible(experiment.claims, len(chosen.seeds)) == []
    assert experiment.arms_of(chosen) == list(experiment.arms), "a claim about an arm that does not run is not judged"


@pytest.mark.parametrize("path", NAMES)
def test_tuning_costs_every_arm_the_same(path, tmp_path):
    experiment = read_experiment(path)
    if experiment.tuning is None:
        return
    assert set(experiment.tuning.spaces) == set(experiment.arms)
    assert {len(space.searched) for space in experiment.tuning.spaces.values()} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("path", NAMES)
def test_every_command_is_parsed(path, tmp_path):
    words = {
        tuple(stage.command[1:])
        for budget in read_experiment(path).budgets
        for stage in stages(path, budget, tmp_path)
        if stage.command[0] == "fit"
    }
    assert mistakes_in([FitLine("", line) for line in sorted(words)]) == []


@pytest.mark.smoke
@pytest.mark.parametrize("path", NAMES)
def test_runs_at_smoke(path, tmp_path):
    folders = ["--runs_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")]
    assert main(["compare", str(path), "--budget", "smoke", "--jobs", "2", *folders]) == 0
    result = load_comparison(tmp_path / "results" / f"{path.stem}-smoke")
    assert (result.runs["status"] == FINISHED).all()
    assert result.judged
    measured = result.runs[list(result.experiment.measures)]
    assert measured["primary"].notna().all()
