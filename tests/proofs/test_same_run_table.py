"""Runs that are repeated: what counts as a difference, what a death does, and what the table says."""

import importlib
import math
import pkgutil
from dataclasses import replace

import pytest
import torch

import rlhf_lightning.algorithms
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.proofs import two_ranks
from rlhf_lightning.proofs.runs import Whim, all_runs
from rlhf_lightning.proofs.runs_table import HEADER, RunRow, measure_runs, runs_markdown
from rlhf_lightning.proofs.same_run import Outcome, difference, distance, outcome, run_seed_is
from rlhf_lightning.rollout.decode import EagerDecoder, FastDecoder
from rlhf_lightning.training.module import Module

BY_NAME = {(run.name, run.task): run for run in all_runs()}
REINFORCE, DPO = BY_NAME["REINFORCE", "Arithmetic"], BY_NAME["DPO", "Bandit"]
GRPO = BY_NAME["GRPO", "Arithmetic"]
BASE = Outcome({}, {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, [{"iteration": 0.0, "x": 0.5, "y": 100.0}])


@pytest.fixture(autouse=True)
def _seed():
    with run_seed_is(0):
        yield


# -- differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (BASE, 0.0),
        (replace(BASE, end={**BASE.end, "w": torch.tensor([1.0, 2.25])}), 0.25),
        (replace(BASE, end={**BASE.end, "n": torch.tensor(5)}), 2.0),
        (replace(BASE, rows=[{"iteration": 0.0, "x": 0.75, "y": 100.0}]), 0.25),
        (replace(BASE, rows=[{"iteration": 0.0, "x": 0.5, "y": 150.0}]), 0.5),  # 50 of 100
        (replace(BASE, rows=[{"iteration": 0.0, "x": math.nan, "y": 100.0}]), math.inf),
        (replace(BASE, end={**BASE.end, "w": torch.tensor([1.0, math.nan])}), math.inf),
        (replace(BASE, end={**BASE.end, "n": torch.tensor(math.nan)}), math.inf),
        (replace(BASE, rows=[*BASE.rows, *BASE.rows]), math.inf),
        (replace(BASE, rows=[{"iteration": 0.0, "x": 0.5}]), math.inf),
        (replace(BASE, end={"w": BASE.end["w"]}), math.inf),
    ],
)
def test_difference_is_the_largest_of_all(other, expected):
    assert difference(BASE, other) == expected


# -- runs ------------------------------------------------------------------------------------------------------


def test_every_algorithm_has_a_run():
    package = rlhf_lightning.algorithms
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    classes = {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Module) and value.__module__ == module.__name__
    }
    assert len(classes) == len(modules)
    assert {run.name for run in all_runs()} == classes | {"RewardModeling"}


@pytest.mark.parametrize(("run", "axis"), [(REINFORCE, [0, 1, 2, 3]), (DPO, [0, 1, 2, 3, 4])])
def test_killed_run_continues_from_its_checkpoint_to_the_same_end(run, axis, tmp_path):
    whole, killed = outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "killed", killed=True)
    assert distance(whole.start, killed.start) > 1e-4  # what is trained on is no longer where it began
    assert distance(killed.start, killed.end) > 1e-4
    assert sorted({next(iter(row.values())) for row in killed.rows}) == axis
    assert difference(whole, killed) == 0


class Moody(Whim):
    """Changes with every call, as no checkpoint knows."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def score(self, prompts, responses):
        self.calls += 1
        return super().score(prompts, responses) * self.calls


def test_what_a_checkpoint_forgets_is_seen(tmp_path):
    def build(optimization):
        module, data = REINFORCE.build(optimization)
        return module, RolloutDataModule(data.task, Moody(), 12, max_new_tokens=5, eval_prompts=7)

    run = replace(REINFORCE, build=build)
    assert difference(outcome(run, tmp_path / "whole"), outcome(run, tmp_path / "killed", killed=True)) > 1e-6


@pytest.mark.parametrize("engine", [EagerDecoder, FastDecoder])
def test_runs_end_the_same_with_every_engine(engine, tmp_path):
    def build(optimization):
        module, _ = GRPO.build(optimization)
        data = RolloutDataModule(module.task, Whim(), 12, 3, max_new_tokens=5, eval_prompts=7, engine=engine())
        return module, data

    run = replace(GRPO, build=build)
    whole = outcome(run, tmp_path / "whole")
    assert difference(whole, outcome(run, tmp_path / "killed", killed=True)) == 0
    assert difference(whole, outcome(run, tmp_path / "parts", microbatch_size=1)) < 1e-12
    assert difference(whole, outcome(GRPO, tmp_path / "default")) < 1e-10  # the same tokens, rounded otherwise


def test_ranks_that_wait_for_each_other_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(two_ranks, "PATIENCE", 0.01)
    with pytest.raises(UserError, match="two ranks did not end within 0 s"):
        two_ranks.on_two_ranks(tmp_path, all_runs()[:1])


@pytest.mark.slow
def test_runs_end_the_same(tmp_path):
    for row in measure_runs([REINFORCE, DPO], tmp_path):
        assert row.holds
        assert row.resumed == 0
        assert 0 < max(row.ranks, row.microbatches) < 1e-12  # something was added up in another order


# -- the table -------------------------------------------------------------------------------------------------

ROW = RunRow(REINFORCE, trained_by=0.0123, ranks=2e-16, microbatches=3e-15, resumed=0.0)


@pytest.mark.parametrize(
    "change",
    [{"trained_by": 0.0}, {"ranks": 1e-8}, {"microbatches": math.inf}, {"resumed": 1e-17}, {"resumed": math.nan}],
)
def test_verdicts_of_runs_go_both_ways(change):
    assert ROW.holds
    wrong = replace(ROW, **change)
    assert not wrong.holds
    assert sum("REFUTED" in cell for cell in wrong.cells()) == 1


def test_table_of_runs():
    text = runs_markdown([ROW, replace(ROW, run=DPO, ranks=0.0, resumed=1.0)], seed=4)
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert table == [
        list(HEADER),
        ["REINFORCE", "Arithmetic", "0.012", "2e-16", "3e-15", "0"],
        ["DPO", "Bandit", "0.012", "0", "3e-15", "1e+00 — REFUTED"],
    ]
    assert "seed 4" in text
