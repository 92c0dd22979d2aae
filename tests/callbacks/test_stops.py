"""What Lightning's own callbacks see of a policy run, and how a run ends that one of them stops."""

import csv
from datetime import timedelta

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from training_helpers import AtHook, Letters, Rows, fit, ppo, rollouts

from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.callbacks.stops import early_end
from rlhf_lightning.errors import UserError


def train(*callbacks, epochs=8, every=3, **settings):
    """PPO on a small task; its rows, and what is said of its end."""
    task = Letters()
    said = []
    end = AtHook("on_train_end", lambda trainer, module: said.append(early_end(trainer)))
    rows = fit(ppo(task, eval_every=every), rollouts(task), *callbacks, end, max_epochs=epochs, **settings).rows
    return rows, said[0]


def never_better(monitor):
    return EarlyStopping(monitor, min_delta=1000, patience=1)


class Seen(Rows):
    """What callbacks find when they hear of a row, and when its iteration ends."""

    def __init__(self):
        super().__init__()
        self.at_row, self.at_end = [], []

    def on_row(self, trainer, module, row):
        super().on_row(trainer, module, row)
        self.at_row.append(self.metrics(trainer))

    def on_train_epoch_end(self, trainer, module):
        self.at_end.append(self.metrics(trainer))

    def metrics(self, trainer):
        return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_callbacks_see_the_finished_row_and_no_older_metric():
    seen = Seen()
    train(seen, epochs=4)
    expected = [{name: pytest.approx(value) for name, value in row.items() if name != "iteration"} for row in seen.rows]
    assert seen.at_row == expected
    assert seen.at_end == expected[1:]
    assert ["eval/score" in metrics for metrics in seen.at_end] == [False, False, True, True]


def test_early_stopping_counts_evaluations():
    rows, said = train(never_better("eval/score"))
    assert [row["iteration"] for row in rows if "eval/score" in row] == [0, 3, 6]
    assert len(rows) == 7
    assert said == (
        "training ends early, after iteration 6: EarlyStopping: Monitored metric eval/score did not improve in the "
        f"last 1 records. Best score: {rows[3]['eval/score']:.3f}."
    )


def test_run_that_is_stopped_between_evaluations_is_evaluated_last(tmp_path):
    checkpoints = Checkpoints(monitor="eval/score")
    files = (MetricsFile(), checkpoints)
    rows, _ = train(never_better("objective/score"), *files, every=100, default_root_dir=tmp_path)
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(row["iteration"], row["eval/score"] != "") for row in table] == [("0", True), ("1", False), ("2", True)]
    assert float(table[2]["objective/score"]) == rows[2]["objective/score"]
    assert float(table[2]["eval/score"]) == rows[3]["eval/score"] == checkpoints.best


def test_evaluation_of_the_last_iteration_is_not_repeated():
    rows, said = train(epochs=4, every=4)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert said is None


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (EarlyStopping("eval/scor"), r"EarlyStopping monitors eval/scor, which .*; did you mean eval/score or"),
        (Checkpoints(monitor="eval/scor"), r"Checkpoints monitors eval/scor, .*did you mean eval/score"),
        (ModelCheckpoint(monitor="val_loss"), r"ModelCheckpoint monitors val_loss, .*; did you mean value/loss"),
    ],
)
def test_metric_that_is_never_reported_is_refused(callback, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        train(callback, default_root_dir=tmp_path)


def test_metric_that_may_be_missing_is_not_refused():
    _, said = train(EarlyStopping("eval/scor", strict=False), epochs=2)
    assert said is None


class Asks(Callback):
    """Asks for the end without a reason."""

    def on_train_batch_end(self, trainer: Trainer, *args):
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (Timer(timedelta(microseconds=1)), "Timer: the time is up (0:00:0"),
        (Asks(), "a callback or the model asked for it"),
    ],
)
def test_who_stopped_is_named(callback, expected):
    module = ppo(Letters(), eval_every=100)
    trainer_of = []
    started = AtHook("on_train_start", lambda trainer, module: trainer_of.append(trainer))
    fit(module, rollouts(Letters()), started, callback, max_epochs=8)
    assert expected in early_end(trainer_of[0])
