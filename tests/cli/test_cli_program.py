"""The program as a whole: finding commands, help, mistakes."""

import subprocess
import sys

import pytest

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
