"""Many stages, several at a time: their order, what becomes of failures, and how it ends."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline import schedule as module
from rlhf_lightning.pipeline.processes import StageBusyError
from rlhf_lightning.pipeline.schedule import StageSchedule
from rlhf_lightning.pipeline.stages import Stage


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


def stage(name, *needs):
    return Stage(name, ["fit"], Path(name), {one: Path(one, "export") for one in needs}, Path(name, "export"))


class Played:
    """A launcher whose stages end after some looks, with a status each.

    Args:
        looks: how often a stage is looked at before it ends.
    """

    def __init__(self, statuses=(), *, done=(), busy=(), refused=(), looks=2):
        self.statuses, self.done, self.refused = dict(statuses), done, refused
        self.busy = dict(busy)
        self.looks, self.started, self.now, self.most, self.told, self.batches = looks, [], [], 0, [], []

    @contextmanager
    def together(self):
        self.batches.append([])
        yield

    def start(self, one):
        if one.name in self.done:
            return None
        if one.name in self.refused:
            raise UserError(f"{one.name} cannot be started")
        if self.busy.get(one.name, 0) > 0:
            self.busy[one.name] -= 1
            raise StageBusyError("busy")
        self.started.append(one.name)
        self.batches[-1].append(one.name)
        self.now.append(one.name)
        self.most = max(self.most, len(self.now))
        return Process(self, one.name)


class Process:
    def __init__(self, launcher, name):
        self.launcher, self.name, self.left = launcher, name, launcher.looks

    def poll(self):
        self.left -= 1
        if self.left > 0:
            return None
        self.launcher.now.remove(self.name)
        return self.launcher.statuses.get(self.name, 0)

    def terminate(self):
        self.launcher.told.append(f"terminate {self.name}")

    def stop(self):
        self.launcher.told.append(f"stop {self.name}")


STAGES = [stage("sft"), stage("a", "sft"), stage("b", "sft"), stage("other"), stage("last", "a", "b")]


def run(launcher, *, jobs=2, stages=STAGES, **options):
    found = StageSchedule(stages, launcher, jobs=jobs, **options)
    found.run()
    return {str(path): one.state for path, one in found.progress.items()}


def test_a_stage_starts_when_what_it_reads_is_there():
    launcher = Played()
    assert set(run(launcher).values()) == {"finished"}
    order = launcher.started
    assert order[:2] == ["sft", "other"], "what waits for sft stands back"
    assert order.index("last") > max(order.index("a"), order.index("b"))


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_more_run_at_a_time_than_jobs(jobs):
    launcher = Played()
    run(launcher, jobs=jobs, stages=[stage(f"s{i}") for i in range(7)])
    assert launcher.most == jobs
    assert len(launcher.started) == 7


def test_what_can_start_at_the_same_time_is_started_together():
    launcher = Played()
    run(launcher, jobs=10)
    assert [batch for batch in launcher.batches if batch] == [["sft", "other"], ["a", "b"], ["last"]]


def test_what_is_done_is_not_started_again():
    launcher = Played(done=("sft", "a"))
    assert set(run(launcher).values()) == {"finished"}
    assert sorted(launcher.started) == ["b", "last", "other"]


def test_a_failure_stops_only_what_depends_on_it():
    states = run(Played({"a": 1}))
    assert states == {"sft": "finished", "a": "failed", "b": "finished", "other": "finished", "last": "left out"}


@pytest.mark.parametrize(
    ("status", "state"), [(1, "failed"), (143, "interrupted"), (130, "interrupted"), (137, "interrupted")]
)
def test_what_was_ended_from_outside_can_go_on(status, state):
    assert run(Played({"other": status}), stages=[stage("other")]) == {"other": state}


def test_a_stage_that_cannot_be_started_says_why():
    found = StageSchedule(STAGES, Played(refused=("a",)), jobs=2)
    found.run()
    one = found.progress[Path("a")]
    assert (one.state, one.status, one.reason) == ("failed", 2, "a cannot be started")
    assert found.progress[Path("last")].reason == "a could not be made"


def test_what_another_process_makes_is_waited_for():
    launcher = Played(busy={"sft": 3})
    seen = []
    found = StageSchedule(STAGES, launcher, jobs=2)
    found.run(lambda progress: seen.append(progress[Path("sft")].state))
    assert "elsewhere" in seen
    assert {one.state for one in found.progress.values()} == {"finished"}


def test_what_failed_before_is_left_unless_it_is_tried_again():
    launcher = Played()
    states = run(launcher, skip=lambda one: 3 if one.name == "a" else None)
    assert states["a"] == "failed"
    assert "a" not in launcher.started


def test_an_interruption_stops_what_runs():
    launcher = Played(looks=100)
    found = StageSchedule([stage("x"), stage("y"), stage("z")], launcher, jobs=2)

    def look(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.run(look)
    assert launcher.told == ["terminate x", "terminate y", "stop x", "stop y"], "all are told before one is waited for"
    assert {str(path): one.state for path, one in found.progress.items()} == {
        "x": "interrupted",
        "y": "interrupted",
        "z": "waiting",
    }
