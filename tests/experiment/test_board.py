"""What a running comparison shows, on a terminal and in a log."""

import io
import time

import pytest
from declared import experiment, played
from rich.console import Console

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.plan import ComparisonPlan, all_stages
from rlhf_lightning.experiment.progress import Board, done_share, duration, seconds_left
from rlhf_lightning.pipeline.schedule import StageProgress


@pytest.fixture
def board(tmp_path):
    """Makes a board of a comparison of two arms and two seeds: the board, its runs, their progress and the output."""

    def make(*, terminal, declared=None):
        declared = declared or experiment(seeds=2)
        runs = ComparisonPlan(declared, declared.budgets["paper"], tmp_path).runs()
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=120)
        progress = {stage.directory: StageProgress(stage) for stage in all_stages(runs)}
        return Board(declared, runs, console, jobs=2), runs, progress, output

    return make


def finish(run, progress, score, seconds=30.0):
    played(run.directory, score)
    progress[run.directory].state, progress[run.directory].seconds = "finished", seconds


def test_a_line_for_each_run_that_ends(board):
    shown, runs, progress, output = board(terminal=False)
    with shown:
        finish(runs[0], progress, 0.5)
        progress[runs[1].directory].state, progress[runs[1].directory].status = "failed", 3
        progress[runs[1].directory].seconds = 100.0
        shown.look(progress)
        shown.look(progress)
    assert output.getvalue().splitlines() == [
        "[2 of 4] seed-1/one: finished, eval/score 0.50 after 30 s",
        "[2 of 4] seed-1/two: failed after 2 min with status 3",
    ]


def test_what_was_finished_before_is_not_told_again(board):
    shown, runs, progress, output = board(terminal=False)
    finish(runs[0], progress, 0.5, seconds=None)
    with shown:
        shown.look(progress)
    assert output.getvalue() == ""


def test_a_table_of_arms_and_seeds_on_a_terminal(board):
    shown, runs, progress, output = board(terminal=True)
    with shown:
        for run in runs[:2]:
            finish(run, progress, 0.4 if run.arm == "one" else 0.8)
        progress[runs[2].directory].state, progress[runs[2].directory].started = "running", time.monotonic()
        shown.look(progress)
    text = output.getvalue()
    assert "One against two" in text
    assert "✓" in text
    assert "▸" in text, "it runs, and has written nothing yet"
    assert "2 of 4 stages" in text
    assert "running: seed-2/one" in text
    assert "about 30 s left" in text, "two runs of 30 s, two at a time"
    assert "0.80" in text


def test_a_measure_that_only_some_arms_have_ends_nothing(board):
    declared = experiment(seeds=2, measures={"clipped": {"metric": "policy/clip_fraction"}})
    shown, runs, progress, output = board(terminal=False, declared=declared)
    with shown:
        finish(runs[0], progress, 0.5)
        shown.look(progress)
    assert "seed-1/one: finished, eval/score 0.50" in output.getvalue()


def test_the_first_run_without_what_is_measured_ends_it(board):
    shown, runs, progress, _ = board(terminal=False, declared=experiment(seeds=2, metric={"metric": "eval/scor"}))
    finish(runs[0], progress, 0.5)
    with shown, pytest.raises(UserError, match="no run has logged eval/scor"):
        shown.look(progress)


def test_share_of_a_run_that_is_done(tmp_path):
    assert done_share(tmp_path / "nothing") is None
    played(tmp_path / "run", 0.5)
    assert done_share(tmp_path / "run") == 1.0
    (tmp_path / "run" / "config.yaml").write_text("trainer: {max_epochs: 16}\n")
    assert done_share(tmp_path / "run") == 0.25
    (tmp_path / "run" / "config.yaml").write_text("trainer: {max_epochs: 0}\n")
    assert done_share(tmp_path / "run") is None


def test_time_left_goes_by_stages_of_the_same_name(board):
    _, runs, progress, _ = board(terminal=False)
    assert seconds_left(progress, 1) is None
    finish(runs[0], progress, 0.5, seconds=10.0)
    finish(runs[1], progress, 0.5, seconds=50.0)
    assert seconds_left(progress, 1) == pytest.approx(60.0)
    assert seconds_left(progress, 2) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (100, "2 min"), (7100, "118 min"), (7300, "2 h 02 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
