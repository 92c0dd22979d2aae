"""What a running comparison tells, of runs that are played by files."""

import io

import pytest
from declared import experiment, played
from rich.console import Console

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.plan import Plan
from rlhf_lightning.experiment.progress import Board
from rlhf_lightning.pipeline.schedule import Progress


def told(declared, directory, *, column):
    """What is told of two runs of an arm each, of which only the second has logged a further metric."""
    runs = Plan(declared, declared.budgets["paper"], directory).runs()[:2]
    played(runs[0].directory, 0.5)
    played(runs[1].directory, 0.75, **{column: 2.0})
    console = Console(file=io.StringIO(), width=100)
    stages = [run.stages[-1] for run in runs]
    with Board(declared, runs, console, jobs=1) as board:
        board.look({stage.directory: Progress(stage, "finished", seconds=60.0) for stage in stages})
    return console.file.getvalue()


def test_a_measure_that_only_some_arms_have_stops_nothing(tmp_path):
    text = told(experiment(measures={"kl": {"metric": "eval/kl"}}), tmp_path, column="eval/kl")
    assert "one: finished, eval/score 0.5" in text
    assert "two: finished, eval/score 0.75" in text


def test_a_primary_metric_that_is_not_logged_stops_at_the_first_run(tmp_path):
    with pytest.raises(UserError, match=r"no run has logged eval/scor; did you mean eval/score\?"):
        told(experiment(metric={"metric": "eval/scor"}), tmp_path, column="eval/kl")
