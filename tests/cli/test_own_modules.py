"""Modules of the user's own: where they are found, and what is said of errors in them."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.cli_runs import FAKES, fit, run_files, toy

MODULE = f"""
from {FAKES} import ToyIterations

class Mine(ToyIterations):
    def __init__(self, task, backbone, clip_range: float = 0.2) -> None:
        super().__init__(task, backbone, clip_range)
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Writes a module and a configuration that names it into a folder; commands run in another one."""
    folder, work = tmp_path / "experiment", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, source: str) -> list[str]:
        (folder / f"{name}.py").write_text(source)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"class_path": f"{name}.Mine"}}))
        return [*toy(epochs=1), "--config", str(folder / f"{name}.yaml"), "--name", "mine"]

    return write


def test_modules_are_found_beside_the_configuration(beside):
    assert fit(*beside("beside_one", MODULE)) == 0
    assert yaml.safe_load(Path("runs/mine/config.yaml").read_text())["model"]["class_path"] == "beside_one.Mine"


def test_modules_beside_a_configuration_come_last(beside):
    """A file there cannot stand in for an installed module."""
    words = beside("beside_two", MODULE)
    (Path(words[-3]).parent / "colorsys.py").write_text("raise RuntimeError\n")
    assert fit(*words) == 0
    import colorsys

    assert "experiment" not in colorsys.__file__


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("with_typo", MODULE.replace("class", "clas"), "model: importing with_typo raised SyntaxError: invalid syntax"),
        ("with_error", f"{MODULE}\nx = 1 / 0", "ZeroDivisionError: division by zero (with_error.py, line 8)"),
        ("bad_init", f"{MODULE}        self.x = clip_range.x\n", "has no attribute 'x' (bad_init.py, line 7)"),
    ],
)
def test_error_in_a_module_is_one_line_and_blocks_nothing(beside, capsys, name, source, said):
    words = beside(name, source)
    assert fit(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("runs/mine").exists()
    sys.modules.pop(name, None)
    beside(name, MODULE)
    assert fit(*words) == 0
    assert "DONE" in run_files("runs/mine")
