"""``new``: write a file of one's own to start from: an optimizer, loss, reward, task or callback."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path

from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.templates import KINDS, commands, render, snake_case

EXAMPLE = "new optimizer MyOptimizer"


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = LineParser("new", COMMANDS["new"], EXAMPLE)
    parser.add_argument("kind", choices=KINDS, help="what to write; all: an optimizer, a reward, a task and a callback")
    parser.add_argument("name", help="of the class; the file in the current folder is called my_optimizer.py, likewise")
    arguments = parser.parse_intermixed_args(argv)
    name, module = arguments.name, snake_case(arguments.name)
    if not name.isidentifier() or keyword.iskeyword(name) or keyword.iskeyword(module):
        raise UserError(f"{name!r} cannot be the name of a class; expected one such as MyOptimizer")
    files = render(arguments.kind, name)
    for file in files:
        if Path(file).exists():
            raise UserError(f"{file} exists; choose another name, or remove it")
    if importlib.util.find_spec(module) is not None:  # it would be hidden: the current folder is searched first
        raise UserError(f"{module}.py would hide the installed module {module}; choose another name")
    for file, text in files.items():
        write_atomically(Path(file), text)
    source, configuration = files
    print(f"wrote {source} and {configuration}: they work as they stand, and their comments say what to fill in")
    for number, command in enumerate(commands(files[configuration])):
        print(f"{'     ' if number else 'next:'} {command}")
