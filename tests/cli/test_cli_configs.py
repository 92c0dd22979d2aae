"""Finding and reading configuration files, and locking a run directory."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.errors import UserError
from rlhf_lightning.records import config_files
from rlhf_lightning.records.config_files import find_config, read_config
from rlhf_lightning.records.run_directory import RunDirectory
from rlhf_lightning.records.run_plan import plan_run


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("where", ["site-packages/rlhf_lightning/_configs", "checkout/configs"])
def test_find_config_falls_back_on_the_shipped_ones(where, tmp_path, monkeypatch):
    """An installed package holds them inside, a checkout beside the package."""
    shipped = tmp_path / where
    (shipped / "tasks").mkdir(parents=True)
    (shipped / "tasks" / "assistant.yaml").write_text("shipped: 1")
    monkeypatch.setattr(config_files, "_PACKAGE", shipped.parent if "site" in where else shipped.parent / "package")
    assert read_config(find_config("configs/tasks/assistant.yaml")) == {"shipped": 1}
    with pytest.raises(UserError, match=r"asistant\.yaml: no such file; did you mean configs/tasks/assistant\.yaml\?"):
        find_config("configs/tasks/asistant.yaml")
    Path("configs/tasks").mkdir(parents=True)
    Path("configs/tasks/assistant.yaml").write_text("own: 1")
    assert read_config(find_config("configs/tasks/assistant.yaml")) == {"own": 1}


def test_find_config_finds_the_package_s_own():
    assert "task" in read_config(find_config("configs/tasks/assistant.yaml"))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", {}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("a: [1, {b: é}]\n", {"a": [1, {"b": "é"}]}),
    ],
)
def test_read_config_mapping(text, content):
    Path("a.yaml").write_text(text, encoding="utf-8")
    assert read_config("a.yaml") == content


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a: {b: 1, b: 2}", "a.yaml, line 1, column 11: key 'b' is given twice"),
        (b"a: 1\nb: [1,\n", "a.yaml, line 3, column 1"),
        (b"just words", "a.yaml: expected a mapping of keys to values, found str"),
        (b"\xff\xfe", "a.yaml: not a YAML text"),
        (b"a: !!python/object:os.system {}", "a.yaml, line 1, column 4: could not determine a constructor"),
    ],
)
def test_read_config_mistake_is_one_line(text, line):
    Path("a.yaml").write_bytes(text)
    with pytest.raises(UserError) as caught:
        read_config("a.yaml")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_run_directory_belongs_to_one_process_at_a_time():
    run, late = Path("run"), RunDirectory(plan_run(Path("run"), {}, overwrite=False), {})
    first = RunDirectory(plan_run(run, {}, overwrite=False), {"a": 1})
    first.start()
    with pytest.raises(UserError, match="another process is training in run"):
        plan_run(run, {"a": 1}, overwrite=False)
    with pytest.raises(UserError, match="another process is training in run"):
        late.start()
    late.abandon()
    assert sorted(p.name for p in run.iterdir()) == [".lock", "config.yaml", "environment.json"]
    first.finish()
    with pytest.raises(UserError, match="finished run"):
        plan_run(run, {"a": 1}, overwrite=False)
    assert plan_run(run, {"a": 1}, overwrite=True).set_aside


def test_run_name_that_is_no_text_is_refused():
    with pytest.raises(UserError, match=r"the run directory 'runs/caf\\udce9' has a name that cannot be written"):
        plan_run(Path("runs/caf\udce9"), {}, overwrite=False)


def test_run_directory_of_a_process_that_trains_is_left_alone_by_one_that_fails():
    run, late = Path("run"), RunDirectory(plan_run(Path("run"), {}, overwrite=False), {})
    first = RunDirectory(plan_run(run, {}, overwrite=False), {"a": 1})
    first.start()
    late.abandon()  # it failed before it would have started
    assert sorted(p.name for p in run.iterdir()) == [".lock", "config.yaml", "environment.json"]
    first.finish()


def test_run_directory_is_not_set_aside_under_a_process_that_trains():
    run = Path("run")
    first = RunDirectory(plan_run(run, {}, overwrite=False), {})
    first.start()
    late = RunDirectory(replace(plan_run(Path("other"), {}, overwrite=False), directory=run, set_aside=True), {})
    with pytest.raises(UserError, match="another process is training in run"):
        late.set_aside()
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize("moves", range(1, 5))
def test_run_directory_whose_move_was_cut_short_is_replaced_and_not_continued(moves, monkeypatch):
    run = Path("run")
    old = RunDirectory(plan_run(run, {"a": 1}, overwrite=False), {"a": 1})
    old.start()
    AtomicCheckpointIO().save_checkpoint({"x": 1}, run / "checkpoints" / "last.ckpt")
    old.finish()
    new = RunDirectory(plan_run(run, {"a": 1}, overwrite=True), {"a": 1})
    rename, done = Path.rename, []

    def crashing(self, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(rename(self, target))

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", crashing)
        new.set_aside()
    again = plan_run(run, {"a": 1}, overwrite=True)
    assert again.resume_from is None


def test_run_directory_of_a_killed_process_is_free():
    run = Path("run")
    killed = RunDirectory(plan_run(run, {}, overwrite=False), {})
    killed.start()
    killed._lock.close()
    assert plan_run(run, {}, overwrite=False).set_aside
