"""``python -m rlhf_lightning COMMAND …``: find the command, run it, turn what the user can put right into one line."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence

from rlhf_lightning.cli.text_streams import BROKEN_PIPE, check_arguments, output_failure, show_any_character, use_utf8
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError, suggestion

RANK_DELAY = 5.0
"""Seconds for which ranks other than 0 keep silent about a mistake."""

PROGRAM = "python -m rlhf_lightning"
_TRAINER_COMMANDS = ("fit", "validate", "test")
_NAMES = ", ".join(COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0, 2 for a mistake of the user's, 130 when interrupted, 141 when nobody reads the output any more.
    """
    status = _status(argv)
    if argv is None and status and _is_distributed():
        from rlhf_lightning.lightning_seams import end_process

        end_process(status)
    return status


def _is_distributed() -> bool:
    """Whether this process is in a process group of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _status(argv: Sequence[str] | None) -> int:
    if argv is None:
        use_utf8()
        show_any_character()
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())  # for modules of the user's own, as under ``python -m``
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        check_arguments(argv)
        status = _dispatch(argv)
        print(end="", flush=True)
        return status
    except OSError:
        failure = output_failure()
        if failure is None:
            raise
        if isinstance(failure, BrokenPipeError):  # whoever read the output has gone, as `head` does
            return BROKEN_PIPE
        _tell(f"the output cannot be written: {failure.strerror}")
        return 2
    except UserError as error:
        if os.environ.get("RLHF_LIGHTNING_TRACEBACK"):
            raise
        _tell(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _tell(line: str) -> None:
    """Say what is wrong, on one rank: the others mostly find the same, and rank 0 ends them."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    if rank != "0":
        time.sleep(RANK_DELAY)
        line = f"rank {rank}: {line}"
    print(f"error: {line}", file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, rest = argv[0], argv[1:]
    if name == "--version":
        from rlhf_lightning.records.environment import package_version

        print(f"rlhf_lightning {package_version()}")
        return 0
    if name.startswith("-"):
        raise UserError(f"the command comes first: {PROGRAM} fit {' '.join(argv[:2])} … (commands: {_NAMES})")
    if name not in COMMANDS:
        hint = suggestion(name, COMMANDS, otherwise=f"expected one of {_NAMES}", cutoff=0.5)
        raise UserError(f"unknown command {name!r}; {hint}")
    if name in _TRAINER_COMMANDS:
        if rest in (["-h"], ["--help"]):
            print(_trainer_help(name))
            return 0
        from rlhf_lightning.cli.command_line import main as run_trainer

        return run_trainer(name, ["--help"] if rest == ["--help-all"] else rest)
    return int(importlib.import_module(f"rlhf_lightning.commands.{name}").main(rest) or 0)


def _help() -> str:
    commands = "\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items())
    return f"""usage: {PROGRAM} COMMAND [OPTIONS]

Train and compare policy optimizers for language models from human feedback.

{commands}

examples:
  {PROGRAM} pipeline --config configs/quickstart.yaml --name quickstart
  {PROGRAM} fit --config configs/tasks/assistant.yaml --config configs/algorithms/sft.yaml --name sft

{PROGRAM} COMMAND --help lists the options of a command; --version shows the version.
A mistake ends in one line and exit status 2; RLHF_LIGHTNING_TRACEBACK=1 shows where it was raised."""


def _trainer_help(name: str) -> str:
    """The options that matter; reading them all from the classes takes seconds."""
    own = {
        "--config FILE": "YAML; several are merged in order; configs/… are found in any folder",
        "--KEY VALUE": "any key of the configuration, such as --model.init_args.optimization.lr 1e-4",
        "--name NAME": "name of the run (default: MODEL-TASK-SEED)",
        "--runs_dir DIR": "folder of all runs (default: runs)",
        "--seed_everything N": "seed (default: 1)",
        "--ckpt_path FILE": "checkpoint"
        + (" to go on from; last is the run's own" if name == "fit" else " (default: the run's last one)"),
    }
    if name == "fit":
        own |= {
            "--overwrite": "replace a run that is there; without it an unfinished one continues",
            "--checkpoint_every N": "iterations or steps between checkpoints",
            "--checkpoint_keep N": "number of last checkpoints kept (default: 2)",
        }
    own |= {
        "--trainer.devices N": "devices, and --trainer.num_nodes N machines",
        "--print_config": "show the full configuration and stop",
        "--model.help CLASS": "arguments of a class; likewise --data.help, --task.help, --backbone.help",
        "--help-all": "every option",
    }
    configs = "--config configs/tasks/assistant.yaml --config configs/algorithms/sft.yaml"
    example = configs + " --name sft" if name == "fit" else "--config runs/sft/config.yaml"
    options = "\n".join(f"  {option:<22} {line}" for option, line in own.items())
    return f"""usage: {PROGRAM} {name} --config FILE … [OPTIONS]

{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.

{options}

example: {PROGRAM} {name} {example}"""


if __name__ == "__main__":
    sys.exit(main())
