"""The program as a whole: finding commands, help, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

from rlhf_lightning.__main__ import main
from rlhf_lightning.commands import COMMANDS

WITHOUT_TORCH = """
import contextlib, io, sys
from rlhf_lightning.__main__ import main
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(command.split())
    assert "usage:" in out.getvalue() or "rlhf_lightning" in out.getvalue(), command
    heavy = {"torch", "lightning", "transformers"} & set(sys.modules)
    assert not heavy, f"{command} imports {heavy}"
"""


def test_main_help_imports_no_torch():
    helps = ["--help", "--version", *(f"{name} --help" for name in COMMANDS)]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *helps], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_main_help_lists_every_command_and_an_example(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert any(row.split()[:1] == [name] and row.endswith(line) for row in shown.splitlines())
    assert "python -m rlhf_lightning pipeline --config configs/quickstart.yaml" in shown


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["ft"], "unknown command 'ft'; did you mean fit?"),
        (["pipelin"], "unknown command 'pipelin'; did you mean pipeline?"),
        (["xyz"], "unknown command 'xyz'; expected one of fit, validate, test, pipeline"),
        (["--config", "a.yaml", "fit"], "the command comes first: python -m rlhf_lightning fit --config a.yaml"),
    ],
)
def test_main_mistakes_are_one_line_and_status_2(argv, line, capsys):
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {line}")
    assert shown.err.count("\n") == 1


def test_main_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf_lightning 0.")


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
"""Environment in which Python reads and writes ASCII."""


def program(*words, stdin=b"", **environment):
    """The program in a process of its own: exit status, output and complaints, as bytes."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1", **environment}
    call = [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", *words]
    done = subprocess.run(call, env=env, input=stdin, capture_output=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("environment", [{}, ASCII])
def test_argument_that_is_not_utf8_is_refused(environment):
    status, out, err = program("fit", "--name", b"caf\xe9", **environment)
    assert (status, out) == (2, b"")
    assert err == b"error: the argument b'caf\\xe9' is not UTF-8; expected text in UTF-8\n"


def test_output_that_nobody_reads_ends_without_complaint():
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "rlhf_lightning", "--help"]
    done = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        ("--help > /dev/full", 2, b"error: the output cannot be written: No space left on device\n"),
        ("--help >&-", 0, b""),
        ("generate nothing <&-", 2, b"error: standard input is closed; expected prompts there, as arguments or by"),
    ],
)
def test_streams_that_are_full_or_closed(words, status, line):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    call = ["sh", "-c", f"{sys.executable} -m rlhf_lightning {words}"]
    done = subprocess.run(call, env=env, capture_output=True, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(line)
    assert done.stderr.count(b"\n") == bool(line)


@pytest.mark.slow
def test_texts_pass_through_a_program_in_another_locale(tmp_path):
    """A byte-order mark is no text, input is UTF-8 in any locale, and output gets escapes for what it cannot hold."""
    tiny_models.policy("llama").save(tmp_path / "café")
    words = ["generate", str(tmp_path / "café"), "--max_new_tokens", "2"]
    status, out, err = program(*words, stdin=b"\xef\xbb\xbfcaf\xc3\xa9\n", **ASCII, PYTHONIOENCODING="ascii")
    assert (status, err) == (0, b"")
    assert out.startswith(b"> caf\\xe9\n")
    status, out, err = program(*words, "--out", str(tmp_path / "ü.jsonl"), stdin=b"caf\xe9\n", **ASCII)
    assert status == 2
    assert err == b"error: <stdin>:1: not UTF-8 text (byte 4); expected one prompt per line\n"


@pytest.mark.slow
def test_configuration_and_name_of_a_run_are_utf8_in_another_locale(tmp_path):
    (tmp_path / "möbel.yaml").write_text("name: café\n", encoding="utf-8")
    toy = ["fit", "--task", "tests.cli_fakes.ToyTask", "--backbone", "tests.cli_fakes.ToyBackbone"]
    toy += [
        "--data",
        "tests.cli_fakes.ToyData",
        "--model",
        "tests.cli_fakes.ToyIterations",
        "--trainer.max_epochs",
        "1",
    ]
    toy += ["--trainer.accelerator", "cpu", "--runs_dir", str(tmp_path / "läufe")]
    status, out, err = program(*toy, "--config", str(tmp_path / "möbel.yaml"), **ASCII)
    assert (status, err) == (0, b"")
    assert "café: done" in out.decode()
    assert (tmp_path / "läufe" / "café" / "DONE").is_file()
    assert "name: café" in (tmp_path / "läufe" / "café" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_configuration_is_utf8_where_python_keeps_to_the_locale(tmp_path):
    (tmp_path / "a.yaml").write_text("name: café\n", encoding="utf-8")
    code = "from rlhf_lightning.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"
    words = ["fit", "--config", "a.yaml", "--config", "configs/tasks/bandit.yaml", "--print_config"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **ASCII, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "name: café\n" in done.stdout.decode()
