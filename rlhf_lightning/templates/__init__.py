"""Files to start from: an optimizer, loss, reward, task or callback of one's own, outside of the package.

Each template is a module of its own that works as it stands, and a configuration that names its class by import path.
Imports no torch.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

KINDS = {
    "optimizer": ("MyOptimizer",),
    "loss": ("MyLoss",),
    "reward": ("MyReward",),
    "task": ("MyTask",),
    "callback": ("MyCallback",),
    "all": ("MyOptimizer", "MyReward", "MyTask", "MyCallback"),
}
"""What can be written, with the names of the classes in the templates."""

_FOLDER = Path(__file__).parent


def render(kind: str, name: str) -> dict[str, str]:
    """Module and configuration of a template, by file name.

    Args:
        kind: one of `KINDS`.
        name: of the class; for several of them the beginning of their names, such as ``Shop`` for ``ShopTask``.
    """
    classes = KINDS[kind]
    module, name = snake_case(name), camel_case(name)
    names = {"my_module": module, "my_loss": module}
    sources = []
    for template in classes:
        role = template.removeprefix("My")
        names[template] = name if len(classes) == 1 else name + role
        sources.append((_FOLDER / f"{role.lower()}.py").read_text("utf-8"))
    texts = {
        f"{module}.py": sources[0] if len(sources) == 1 else _joined(sources),
        f"{module}.yaml": (_FOLDER / f"{kind}.yaml").read_text("utf-8"),
    }
    pattern = re.compile(rf"\b({'|'.join(names)})")
    return {file: pattern.sub(lambda match: names[match[1]], text) for file, text in texts.items()}


def commands(configuration: str) -> list[str]:
    """The commands in the header of a configuration."""
    return re.findall(r"^#   (python -m .*)$", configuration, re.MULTILINE)


def camel_case(name: str) -> str:
    """``my_clip`` as ``MyClip``; names without underscores that begin with a capital stay as they are."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def snake_case(name: str) -> str:
    """``MyPPOClip`` as ``my_ppo_clip``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _joined(sources: list[str]) -> str:
    """One module of several: their docstrings, their imports, each once, and their classes."""
    purposes, imports, bodies = [], [], []
    for source in sources:
        header, body = source.split("\n\n\n", 1)
        docstring, statements = header.split("\n\nfrom __future__ import annotations\n")
        purposes.append(docstring.strip('"\n'))
        imports += [line for line in statements.splitlines() if line]
        bodies.append(body.strip())
    docstring = '"""' + "\n\n".join(purposes) + '\n"""'
    return "\n\n\n".join([f"{docstring}\n\n{_merged_imports(imports)}", *bodies]) + "\n"


def _merged_imports(lines: list[str]) -> str:
    """Import statements in the usual order, with one line per module."""
    names: dict[str, set[str]] = {}
    for line in lines:
        statement, _, imported = line.partition(" import ")
        names.setdefault(statement, set()).update(filter(None, imported.split(", ")))
    sections: dict[int, list[str]] = {}
    for statement in sorted(names, key=lambda text: (text.startswith("from"), text)):
        root = statement.split()[1].partition(".")[0]
        section = 1 if root in sys.stdlib_module_names else 3 if root == "rlhf_lightning" else 2
        merged = f"{statement} import {', '.join(sorted(names[statement]))}" if names[statement] else statement
        sections.setdefault(section, []).append(merged)
    blocks = ["from __future__ import annotations", *("\n".join(sections[n]) for n in sorted(sections))]
    return "\n\n".join(blocks)
