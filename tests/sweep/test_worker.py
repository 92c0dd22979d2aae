"""Workers on a folder of trials: every trial once, those that fall behind given up, those that were left continued."""

import itertools
from pathlib import Path

import pytest
from optuna.trial import TrialState

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.processes import StageBusyError
from rlhf_lightning.pipeline.stages import Stage
from rlhf_lightning.sweep import worker
from rlhf_lightning.sweep.search import Halving, Search
from rlhf_lightning.sweep.space import read_space
from rlhf_lightning.sweep.study import REASON, SCORES, Trials, best_trial

METRIC = "eval/score"


class Runs:
    """Stands in for the processes of runs: each writes a row of its metric whenever it is looked at, six in all.

    The rows are ``level · row + 0.1 · seed``; the level is the trial's value of ``x``.
    """

    def __init__(self):
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.running: set[str] = set()
        self.most = 0
        self.environment: dict[str, str] = {}
        self.busy: dict[str, int] = {}
        self.fails = lambda name: False
        self.raises = lambda name: False

    def start(self, stage, *, log, environment):
        if self.busy.get(stage.name, 0):
            self.busy[stage.name] -= 1
            raise StageBusyError("another process is making it")
        if self.raises(stage.name):
            raise UserError("an input is missing")
        if (stage.directory / "DONE").exists():
            return None
        self.started.append(stage.name)
        self.running.add(stage.name)
        self.most = max(self.most, len(self.running))
        self.environment = environment
        return Process(self, stage)


class Process:
    def __init__(self, runs, stage):
        self.runs, self.stage = runs, stage

    def poll(self):
        if self.runs.fails(self.stage.name):
            self.runs.running.discard(self.stage.name)
            return 2
        path = self.stage.directory / "metrics.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = path.read_text().splitlines() if path.exists() else [f"iteration,{METRIC}"]
        level, seed = float(self.stage.command[0]), int(self.stage.command[1])
        rows.append(f"{len(rows) - 1},{level * (len(rows) - 1) + 0.1 * seed}")
        path.write_text("\n".join(rows) + "\n")
        if len(rows) < 7:
            return None
        (self.stage.directory / "DONE").touch()
        self.runs.running.discard(self.stage.name)
        return 0

    def terminate(self): ...

    def stop(self):
        self.runs.stopped.append(self.stage.name)
        self.runs.running.discard(self.stage.name)


@pytest.fixture
def runs(monkeypatch):
    fakes = Runs()
    monkeypatch.setattr(worker, "start_stage", fakes.start)
    return fakes


def search(halving=None, values=(5, 1, 2, 3)):
    space = read_space({"x": {"values": list(values)}}, "parameters")
    return Search(space, "grid", METRIC, "maximize", halving)


def stages_in(folder: Path, seeds: int):
    def make(number, values):
        names = [f"trial-{number}-{seed}" for seed in range(seeds)]
        words = [[str(values["x"]), str(seed)] for seed in range(seeds)]
        return [Stage(name, word, folder / name, {}, folder) for name, word in zip(names, words, strict=True)]

    return make


def run(folder, *, seeds=1, halving=None, count=4, jobs=1, **options):
    return worker.run_trials(
        folder, search(halving), stages_in(folder, seeds), count=count, jobs=jobs, poll=0.0, **options
    )


def test_the_value_of_a_trial_is_the_last_one_in_the_mean_over_its_seeds(runs, tmp_path):
    study = run(tmp_path, seeds=2)
    values = {trial.user_attrs["values"]["x"]: trial.value for trial in study.trials}
    assert values == {x: pytest.approx(5 * x + 0.05) for x in (5, 1, 2, 3)}  # rows 0 to 5; seeds add 0 and 0.1
    assert best_trial(study).user_attrs[SCORES] == pytest.approx([25.0, 25.1])
    assert sorted(runs.started) == [f"trial-{n}-{seed}" for n in range(4) for seed in range(2)]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_more_runs_than_jobs(jobs, runs, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    run(tmp_path, seeds=2, jobs=jobs)
    assert runs.most == jobs
    assert runs.environment["OMP_NUM_THREADS"] == str(6 // jobs)


def test_what_has_ended_is_not_repeated_and_more_trials_may_follow(runs, tmp_path):
    run(tmp_path, count=2)
    assert runs.started == ["trial-0-0", "trial-1-0"]
    run(tmp_path, count=2)
    study = run(tmp_path, count=4)
    assert runs.started == [f"trial-{number}-0" for number in range(4)]
    assert len({trial.user_attrs["values"]["x"] for trial in study.trials}) == 4


def test_trials_that_fall_behind_are_given_up_and_only_their_first_seed_is_run(runs, tmp_path):
    study = run(tmp_path, seeds=2, halving=Halving(2, 3))
    states = {trial.user_attrs["values"]["x"]: trial.state for trial in study.trials}
    best_so_far, expected = -1, {}
    for trial in study.trials:  # of up to five trials that have come to the third value, one goes on
        x = trial.user_attrs["values"]["x"]
        expected[x] = TrialState.COMPLETE if x > best_so_far else TrialState.PRUNED
        best_so_far = max(x, best_so_far)
    assert states == expected
    assert TrialState.PRUNED in states.values()
    for trial in study.trials:
        pruned = trial.state is TrialState.PRUNED
        assert (f"trial-{trial.number}-0" in runs.stopped) == pruned
        assert (f"trial-{trial.number}-1" in runs.started) != pruned


def test_a_run_that_fails_is_reported_and_stops_no_other(runs, tmp_path):
    runs.fails = lambda name: name == "trial-1-0"
    study = run(tmp_path)
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 3
    assert study.trials[1].state is TrialState.FAIL
    assert study.trials[1].user_attrs[REASON] == "trial-1-0 ended with status 2"


def test_a_run_that_cannot_start_is_reported(runs, tmp_path):
    runs.raises = lambda name: name == "trial-0-0"
    study = run(tmp_path, count=2)
    assert study.trials[0].user_attrs[REASON] == "an input is missing"
    assert study.trials[1].state is TrialState.COMPLETE


def test_a_metric_that_no_run_logs_is_reported(runs, tmp_path):
    other = search()
    other = Search(other.space, other.method, "eval/gold", other.goal)
    study = worker.run_trials(tmp_path, other, stages_in(tmp_path, 1), count=1, poll=0.0)
    assert study.trials[0].user_attrs[REASON] == "trial-0-0 logged no finite eval/gold"


def test_a_run_that_its_dead_worker_left_running_is_waited_for(runs, tmp_path):
    runs.busy = {"trial-0-0": 3}
    assert run(tmp_path, count=1).trials[0].state is TrialState.COMPLETE
    assert runs.started == ["trial-0-0"]


@pytest.mark.parametrize("looks", [1, 4, 9])
def test_an_interrupted_worker_stops_its_runs_and_the_next_continues_them(looks, runs, tmp_path):
    count = itertools.count(1)

    def interrupt(study, running):
        if next(count) == looks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seeds=2, jobs=2, observe=interrupt)
    assert runs.running == set()
    whole = run(tmp_path, seeds=2, jobs=2)
    assert [trial.state for trial in whole.trials] == [TrialState.COMPLETE] * 4
    assert len({trial.user_attrs["values"]["x"] for trial in whole.trials}) == 4
    stopped = set(runs.stopped)
    for name in set(runs.started):
        assert runs.started.count(name) == (2 if name in stopped else 1), name


def test_two_workers_share_the_trials_and_a_dead_one_s_are_taken_over(tmp_path):
    first, second = Trials(tmp_path, search(), 3), Trials(tmp_path, search(), 3)
    numbers = [first.next().number, second.next().number, first.next().number]
    assert numbers == [0, 1, 2]
    assert second.next() is None
    second.tell(1, TrialState.COMPLETE, 1.0)
    kept = [trial.params for trial in first.study.trials]
    first.release()  # as the system does when a process ends
    taken = second.next()
    assert (taken.number, taken.params) == (0, kept[0])
    assert second.next().number == 2
    assert second.next() is None
    assert second.unfinished() == 2


def test_a_damaged_study_is_one_line(tmp_path):
    Trials(tmp_path, search(), 1)
    (tmp_path / "study.log").write_text("not JSON\n")
    with pytest.raises(UserError, match=r"study\.log is damaged"):
        Trials(tmp_path, search(), 1)
