"""``pipeline``: supervised model, preference pairs, reward model and policy, each a command of its own."""

from __future__ import annotations

import difflib
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.parser import LineParser
from rlhf_lightning.commands.stages import STAGES, Settings, Stage, build_stages, changes, key_of, read_pipeline
from rlhf_lightning.errors import UserError
from rlhf_lightning.rundir import CONFIG, DONE, STAGE, check_name, write_atomically

HELP = "train a supervised model, a reward model and a policy, one after another"
EXAMPLE = "pipeline --config configs/quickstart.yaml --name quickstart"
_DETAILS = """
Every stage is a plain command; --print-commands shows them, for a scheduler or to run them by hand. A stage whose
arguments, files and inputs are as they were is skipped, an interrupted one continues.

Options of single stages: --STAGE.KEY VALUE, for instance --policy.trainer.max_epochs 50, with STAGE one of
sft, pairs, reward and policy. Options of all stages: --task.KEY, --backbone.KEY and --trainer.KEY, for instance
--task.init_args.path pairs.jsonl or --trainer.devices 2.
"""


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    settings = Settings(
        configs=arguments.config,
        directory=Path(arguments.runs_dir) / check_name(arguments.name or Path(arguments.config[-1]).stem),
        seed=arguments.seed,
        pipeline=read_pipeline(arguments.config),
    )
    _read_options(rest, settings)
    stages = _selected(build_stages(settings), arguments.stages)
    if arguments.print_commands:
        for stage in stages:
            print(_line([*stage.command, *_overwrite(stage, arguments.overwrite)]))
        return 0
    for stage in stages:
        status = _run(stage, overwrite=arguments.overwrite)
        if status:
            return status
    _say_what_is_next(settings.directory, stages)
    return 0


def _parser() -> LineParser:
    parser = LineParser("pipeline", HELP, EXAMPLE)
    parser.description = f"{parser.description} {_DETAILS.strip()}"
    parser.add_argument("--config", action="append", required=True, help="YAML with task, backbone and pipeline")
    parser.add_argument("--name", help="folder of the pipeline below --runs_dir (default: the configuration's name)")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of every stage (default %(default)s)")
    parser.add_argument("--stages", help="only these, separated by commas (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="make the stages again that are finished already")
    parser.add_argument("--print-commands", action="store_true", help="show the stages' commands and run nothing")
    return parser


def _read_options(words: Sequence[str], settings: Settings) -> None:
    """Sort ``--KEY VALUE`` and ``--KEY=VALUE`` into options of one stage and of all."""
    rest = list(words)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise UserError(f"unexpected argument {option!r}; see python -m rlhf_lightning pipeline --help")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{option} needs a value")
            value = rest.pop(0)
        where, _, key = option[2:].partition(".")
        if where in STAGES and key:
            if where not in settings.pipeline:
                raise UserError(f"{option}: the pipeline has no stage {where} (it has {', '.join(settings.pipeline)})")
            settings.own.setdefault(where, {})[key] = value
        elif where in ("task", "backbone") or (where == "trainer" and key):
            settings.common[option[2:]] = value
        else:
            known = [f"{name}.{key}" if key else name for name in (*STAGES, "task", "backbone", "trainer")]
            known += ["config", "name", "runs_dir", "seed", "stages", "overwrite", "print-commands"]
            close = difflib.get_close_matches(option[2:], known, n=1, cutoff=0.7)
            hint = f"did you mean --{close[0]}?" if close else "see python -m rlhf_lightning pipeline --help"
            if where in ("model", "data"):
                hint = f"give it to one stage, for instance --{list(settings.pipeline)[-1]}.{option[2:]}"
            raise UserError(f"unknown option {option}; {hint}")


def _selected(stages: list[Stage], names: str | None) -> list[Stage]:
    if names is None:
        return stages
    wanted, known = [name.strip() for name in names.split(",")], [stage.name for stage in stages]
    for name in wanted:
        if name not in known:
            raise UserError(f"--stages: no stage {name!r}; expected some of {', '.join(known)}")
    return [stage for stage in stages if stage.name in wanted]


# -- running -----------------------------------------------------------------------------------------------------


def _run(stage: Stage, *, overwrite: bool) -> int:
    """Run one stage, unless it is done already; returns its exit status."""
    for name, path in stage.inputs.items():
        if not path.exists():
            raise UserError(f"{stage.name} needs {path}, which the stage {name} makes; run it first")
    key = key_of(stage)
    state = _state(stage, key)
    if state == "unchanged" and not overwrite:
        print(f"{stage.name}: unchanged, skipped", flush=True)
        return 0
    if state == "foreign" and not overwrite:
        raise UserError(
            f"{stage.directory} holds a finished run that this command did not make; pass --overwrite to make it "
            f"again, or leave {stage.name} out with --stages"
        )
    if state not in ("unchanged", "foreign", "new"):
        print(f"{stage.name}: {state}", flush=True)
    replace = overwrite or state not in ("new", "continues")
    stage.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(stage.directory / STAGE, json.dumps({**key, "done": False}, indent=1) + "\n")
    command = [*stage.command, *_overwrite(stage, replace)]
    if stage.command[0] != "fit":
        (stage.directory / DONE).unlink(missing_ok=True)
    print(f"{stage.name}: {_line(command)}", flush=True)
    status = _call([sys.executable, "-m", "rlhf_lightning", *command])
    if status == 0:
        if not (stage.directory / DONE).exists():
            write_atomically(stage.directory / DONE, "")
        write_atomically(stage.directory / STAGE, json.dumps({**key, "done": True}, indent=1) + "\n")
    return status


def _state(stage: Stage, key: dict[str, Any]) -> str:
    """``new``, ``continues``, ``unchanged``, ``foreign``, or what has changed since it was made."""
    note, done = stage.directory / STAGE, stage.directory / DONE
    if not note.is_file():
        return "foreign" if done.is_file() else "new"
    try:
        old = json.loads(note.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        old = {}
    if {name: old.get(name) for name in key} != key:
        made = (stage.directory / CONFIG).exists() or done.exists()
        return f"{', '.join(changes(old, key))}: made again" if made else "new"
    if not done.is_file():
        return "continues" if (stage.directory / CONFIG).exists() else "new"
    finished_since = done.stat().st_mtime_ns >= note.stat().st_mtime_ns
    return "unchanged" if old.get("done") or finished_since else "made again"


def _call(command: list[str]) -> int:
    """Run a command to its end, handing on SIGTERM and waiting out Ctrl-C; returns a shell's exit status."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            try:
                status = process.wait()
                return status if status >= 0 else 128 - status
            except KeyboardInterrupt:
                _let_end(process)
                return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _let_end(process: subprocess.Popen) -> None:
    """A terminal sends Ctrl-C to the stage as well; a signal to this process alone has to be handed on."""
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def _overwrite(stage: Stage, wanted: bool) -> list[str]:
    return ["--overwrite"] if wanted and stage.command[0] == "fit" else []


def _line(command: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "rlhf_lightning", *command])


def _say_what_is_next(directory: Path, stages: list[Stage]) -> None:
    for stage in stages:
        print(f"made {stage.makes}")
    print(f"next: {_line(['report', str(directory)])}")
    if any(stage.name in ("sft", "policy") for stage in stages):
        print(f"      {_line(['generate', str(directory)])} PROMPT")
