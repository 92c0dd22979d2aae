"""What becomes of mistakes in commands and configurations: each must end in one line and exit status 2.

    python benchmarks/bad_configs.py --seed 1

First the mistakes of ``bad_configs.yaml``, then some made at random for every algorithm's configuration: misspelt keys
and classes, values of a wrong type, values out of range. A mistake counts as refused if the command ends with exit
status 2 before anything is trained, prints no traceback and exactly one line, and that line names the key (or file).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import math
import os
import random
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "benchmarks" / "bad_configs.yaml"
ALGORITHMS = ROOT / "configs" / "algorithms"
PAIRS = "".join(
    json.dumps({"prompt": f"what is {n} ?", "chosen": "hello", "rejected": "thanks"}) + "\n" for n in range(80)
)
"""For algorithms that need them, so that a mistake elsewhere is the only one."""

NUMBERS_OUT_OF_RANGE = (-1, -1000, math.nan)
OTHER_TYPES: tuple[Any, ...] = ("many", [1, 2], {"value": 1})
FREE = ("trainer.max_epochs", "trainer.max_steps", "trainer.check_val_every_n_epoch", "trainer.val_check_interval")
"""Settings for which −1 or null means something."""


@dataclass(frozen=True)
class Case:
    """A mistake.

    Args:
        words: arguments of ``python -m rlhf_lightning``.
        names: what the line must contain.
        files: contents by name.
    """

    group: str
    mistake: str
    words: tuple[str, ...]
    names: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How the command ended.

    Args:
        ending: an exit status, ``started`` or ``traceback``.
        lines: what it printed to standard error.
    """

    ending: str
    lines: tuple[str, ...]

    def refused(self, case: Case) -> bool:
        """Whether it ended as it should."""
        one = len(self.lines) == 1 and self.lines[0].startswith("error: ")
        return self.ending == "2" and one and case.names in self.lines[0]


class Started(BaseException):
    """The command went as far as training: the mistake was taken for right."""


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the mistakes made at random (default %(default)s)")
    parser.add_argument("--only", default="", help="mistakes whose group or arguments contain this")
    arguments = parser.parse_args()
    every = [*written(), *generated(arguments.seed)]
    cases = [case for case in every if arguments.only in f"{case.group} {' '.join(case.words)} {case.mistake}"]
    rows = []
    for case, outcome in tried(cases):
        rows.append((case, outcome))
        print(f"{'' if outcome.refused(case) else 'NOT REFUSED '}{outcome.ending}  {case.mistake}: {said(outcome)}")
    text = "\n".join(table(rows)) + "\n"
    print(totals(rows))
    if not arguments.only:
        target = ROOT / "benchmarks" / "results" / "bad_configs.md"
        target.write_text(f"`python benchmarks/bad_configs.py --seed {arguments.seed}`\n\n{text}", encoding="utf-8")


# -- the mistakes --------------------------------------------------------------------------------------------------


def written() -> list[Case]:
    """Those of the file."""
    content = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    cases = []
    for group, entries in content["cases"].items():
        for entry in entries:
            base = content["bases"][entry.get("after", "ppo")].split()
            words = (*base, *shlex.split(entry["words"]))
            cases.append(Case(group, entry["mistake"], words, str(entry["names"]), content["files"]))
    return cases


def generated(seed: int) -> Iterator[Case]:
    """For every algorithm's configuration: two misspelt keys, a misspelt class, two wrong types, two wrong numbers."""
    for path in sorted(ALGORITHMS.glob("*.yaml")):
        draw = random.Random(f"{seed} {path.stem}")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content.pop("per_task", None)
        leaves = [keys for keys in _leaves(content) if ".".join(keys) not in FREE]
        settings = [keys for keys in leaves if keys[-1] != "class_path"]
        classes = [keys for keys in leaves if keys[-1] == "class_path"]
        numbers = [keys for keys in settings if isinstance(_at(content, keys), int | float)]
        for keys in draw.sample(settings, 2):
            wrong = _misspelt(keys[-1], draw)
            yield _changed(path, content, keys, _at(content, keys), f"{wrong} for {keys[-1]}", wrong, key=wrong)
        for keys in draw.sample(classes, 1):
            wrong = _misspelt(_at(content, keys), draw)
            yield _changed(path, content, keys, wrong, f"{wrong} for {_at(content, keys)}", wrong)
        for keys in draw.sample(numbers, 2):
            value = draw.choice(OTHER_TYPES)
            yield _changed(path, content, keys, value, f"{'.'.join(keys)} is {value}", keys[-1])
        for keys in draw.sample([keys for keys in numbers if keys[0] != "trainer"], 2):
            whole = isinstance(_at(content, keys), int)
            value = draw.choice(NUMBERS_OUT_OF_RANGE[: 2 if whole else 3])
            yield _changed(path, content, keys, value, f"{'.'.join(keys)} is {value}", keys[-1])


def _leaves(content: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def _at(content: Any, keys: Sequence[str]) -> Any:
    return functools.reduce(lambda part, key: part[key], keys, content)


def _misspelt(name: str, draw: random.Random) -> str:
    """Two letters swapped, one left out, or one doubled."""
    at = draw.randrange(len(name) - 1)
    swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    others = [swapped, name[:at] + name[at + 1 :], name[: at + 1] + name[at:]]
    return draw.choice([other for other in others if other != name])


def _changed(
    path: Path, content: dict[str, Any], keys: tuple[str, ...], value: Any, mistake: str, names: str, key: str = ""
) -> Case:
    """The configuration with one value, or one key, replaced."""
    wrong = copy.deepcopy(content)
    parent = _at(wrong, keys[:-1])
    del parent[keys[-1]]
    parent[key or keys[-1]] = value
    words = ["fit", "--config", "configs/tasks/assistant.yaml", "--config", path.name]
    if content["data"]["class_path"] == "PreferenceDataModule":
        words += ["--data.init_args.pairs", "pairs.jsonl"]
    files = {path.name: yaml.safe_dump(wrong), "pairs.jsonl": PAIRS}
    return Case("made at random", f"{path.stem}: {mistake}", tuple(words), names, files)


# -- trying them ---------------------------------------------------------------------------------------------------


def tried(cases: Sequence[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Each mistake with its outcome, all in this process: importing takes longer than the rest."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, stopping_before_training():
        os.chdir(folder)
        sys.path.insert(0, folder)  # as under ``python -m``
        try:
            for case in cases:
                yield case, attempt(case)
        finally:
            sys.path.remove(folder)
            os.chdir(before)


def attempt(case: Case) -> Outcome:
    """Run one command in the working directory."""
    from rlhf_lightning.__main__ import main as run

    for name, text in case.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            ending = str(run(list(case.words)))
        except Started:
            ending = "started"
        except SystemExit as stop:
            ending = str(stop.code)
        except BaseException:  # what a shell would show as a traceback
            ending = "traceback"
            error.write(traceback.format_exc())
        finally:
            os.environ.pop("PL_GLOBAL_SEED", None)
    text = error.getvalue().replace(f"{ROOT}{os.sep}", "").replace(f"{Path.cwd()}{os.sep}", "")
    return Outcome(ending, tuple(line for line in text.splitlines() if line.strip()))


@contextlib.contextmanager
def stopping_before_training() -> Iterator[None]:
    """Raise `Started` after the first batch, or instead of the first stage of a pipeline, a comparison or a sweep."""
    from lightning.pytorch import Callback, Trainer

    class Stop(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise Started

    original = Trainer.fit

    @functools.wraps(original)  # the command line reads its signature
    def fit(self: Trainer, *args: Any, **kwargs: Any) -> None:
        self.callbacks.append(Stop())
        original(self, *args, **kwargs)

    with (
        mock.patch.object(Trainer, "fit", fit),
        mock.patch("rlhf_lightning.commands.pipeline.run_stage", side_effect=Started),
        mock.patch("rlhf_lightning.experiment.engine.run", side_effect=Started),
        mock.patch("rlhf_lightning.sweep.worker.run_trials", side_effect=Started),
    ):
        yield


# -- the table -----------------------------------------------------------------------------------------------------


def said(outcome: Outcome) -> str:
    """Its line, or the last of several."""
    return outcome.lines[-1] if outcome.lines else ""


def totals(rows: Sequence[tuple[Case, Outcome]]) -> str:
    """How many were refused."""
    refused = sum(outcome.refused(case) for case, outcome in rows)
    tracebacks = sum(outcome.ending == "traceback" for _, outcome in rows)
    return f"{refused} refused in one line with exit status 2 out of {len(rows)} tried, {tracebacks} tracebacks"


def table(rows: Sequence[tuple[Case, Outcome]]) -> Iterator[str]:
    """Markdown: totals, then the mistakes by group."""
    yield f"{totals(rows)}."
    group = None
    for case, outcome in rows:
        if case.group != group:
            group = case.group
            yield f"\n**{group[0].upper()}{group[1:]}**\n"
            yield "| mistake | arguments | status | line |"
            yield "| --- | --- | --- | --- |"
        cells = (case.mistake, f"`{shlex.join(case.words)}`", outcome.ending, said(outcome))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    main()
