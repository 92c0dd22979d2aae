"""Places that cannot hold a run, files that cannot be read, and what the trainer itself refuses: one line each."""

from pathlib import Path

import pytest
import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.config_files import read_mapping
from tests.cli_runs import fit, toy


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_memory_that_the_machine_lacks_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "memory:2")
    assert fit(*toy()) == 2
    error = capsys.readouterr().err
    assert "error: can't allocate memory: you tried to allocate 4000000000000000 bytes" in error
    assert error.rstrip().endswith("a smaller microbatch_size, or decode_batch_size for rollouts, needs less memory")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs_dir", "/proc/runs"], "/proc/runs/"),
        (["--name", "a" * 300], "cannot be written: File name too long"),
        (["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "x"], "trainer: Early stopping"),
    ],
)
def test_what_cannot_work_is_one_line(words, said, capsys):
    assert fit(*toy(epochs=1), *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error:") == 1
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: " + "[" * 20000 + "]" * 20000, "nested too deeply"),
        (
            "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
            "more than",
        ),
        ("a: &a [*a]", "more than 100,000 values"),
    ],
)
def test_files_that_explode_are_refused(text, said):
    Path("a.yaml").write_text(text)
    with pytest.raises(UserError, match=f"a.yaml: {said}"):
        read_mapping("a.yaml")


def test_aliases_within_reason_are_read():
    Path("a.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\n")
    assert read_mapping("a.yaml") == yaml.safe_load("{a: {x: 1}, b: [{x: 1}, {x: 1}]}")
