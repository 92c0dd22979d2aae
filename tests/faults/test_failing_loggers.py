"""A tracker that fails is warned of once, and the run goes on."""

from pathlib import Path

from lightning.pytorch.loggers.logger import DummyLogger
from training_helpers import AtHook, Letters, Rows, fit, ppo, rollouts

from rlhf_lightning.callbacks.samples_file import SamplesFile


class Broken(DummyLogger):
    """Refuses every second row and every table; keeps the rest."""

    def __init__(self):
        super().__init__()
        self.rows, self.calls = [], 0

    def log_metrics(self, metrics, step=None):
        self.calls += 1
        if self.calls % 2 == 0:
            raise ConnectionError("503\nService Unavailable")
        self.rows.append(dict(metrics))

    def log_table(self, **table):
        raise TimeoutError


class Healthy(Broken):
    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))

    def log_table(self, **table):
        self.calls += 1


def run(tmp_path, *loggers):
    task = Letters()
    samples = SamplesFile()
    rows = fit(
        ppo(task, eval_every=1), rollouts(task), samples, AtHook("on_train_start", lambda *_: None),
        max_epochs=3, logger=list(loggers), default_root_dir=tmp_path,
    )  # fmt: skip
    return rows


def test_failing_logger_ends_no_run_and_keeps_nothing_from_another(tmp_path, caplog):
    broken, healthy = Broken(), Healthy()
    rows = run(tmp_path, broken, healthy)
    assert isinstance(rows, Rows)
    assert len(rows.rows) == 4  # before training, and after each of three iterations
    assert healthy.rows == rows.rows
    assert healthy.calls == 4
    assert broken.calls == 4
    assert broken.rows == rows.rows[::2]
    assert len(Path(tmp_path, "samples.jsonl").read_text().splitlines()) == 4 * 2
    said = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert said == ["Broken failed (TimeoutError): training goes on, and the run directory has every row"]


def test_reason_of_a_failing_logger_is_one_line(tmp_path, caplog):
    class Rowwise(Broken):
        def log_table(self, **table): ...

    run(tmp_path, Rowwise())
    said = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert said == [
        "Rowwise failed (ConnectionError: 503 Service Unavailable): training goes on, and the run directory has every "
        "row"
    ]
