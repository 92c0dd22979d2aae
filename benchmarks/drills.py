"""What becomes of runs that are killed, and of runs to which something bad happens; some minutes.

    python benchmarks/drills.py --kills 30 --two_ranks 8 --pipelines 6 --seed 1

Every run is one of PPO on a bandit: 8 iterations with an adaptive KL controller, running moments, a schedule and
evaluations. It is killed (SIGKILL) while it starts, collects, updates, evaluates, writes a checkpoint or exports, and
started again with the same command, and so are runs of two ranks and whole pipelines; then each fault is brought about
in a run that is afterwards started again. Every run is compared with an uninterrupted one: rows, samples, exports, and
everything in the checkpoints.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from drill_commands import command_lines, on_two_ranks, pipeline
from drill_faults import FAULTS, fault_line
from drill_runs import Run, complete, differences, rows, went_on

from rlhf_lightning.cli import command_line as cli

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("start", "rollout", "update", "evaluation", "checkpoint", "export")
ITERATIONS = 8
CONFIG = {
    "task": "Bandit",
    "backbone": "TabularBackbone",
    "model": {
        "class_path": "PPO",
        "init_args": {
            "optimization": {"lr": 0.05, "schedule": "linear"},
            "critic": {"lr": 0.1},
            "kl": {"class_path": "AdaptiveKLControl", "init_args": {"coef": 0.05, "target": 0.1}},
            "inner_epochs": 2,
            "minibatch_size": 16,
            "eval_every": 2,
        },
    },
    "data": {
        "class_path": "RolloutDataModule",
        "init_args": {
            "rollout_batch_size": 32,
            "eval_prompts": 16,
            "scaling": {"class_path": "RunningZScore"},
            "reward": {"class_path": "FunctionReward", "init_args": {"function": "drill_parts:reward", "timeout": 2}},
        },
    },
    "trainer": {"max_epochs": ITERATIONS, "accelerator": "cpu", "callbacks": [{"class_path": "drill_parts.Marks"}]},
}


def main() -> None:
    """Print the tables and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of kills (default %(default)s)")
    parser.add_argument("--two_ranks", type=int, default=8, help="of runs on two ranks (default %(default)s)")
    parser.add_argument("--pipelines", type=int, default=6, help="number of killed pipelines (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default %(default)s)")
    given = parser.parse_args()
    cli.import_components()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("bandit.yaml").write_text(yaml.safe_dump(CONFIG))
        whole = Run("whole", "bandit.yaml").start()
        assert whole.wait() == 0, whole.said()
        generator = random.Random(given.seed)
        lines = [*kill_lines(whole, given.kills, generator), ""]
        two = on_two_ranks(Path("bandit.yaml").absolute())
        for command, count in ((two, given.two_ranks), (pipeline(), given.pipelines)):
            for line in command_lines(command, Path(command.name).absolute(), count, generator):
                lines += said(line)
            lines += said("")
        lines += fault_lines(whole)
    text = "\n".join(lines) + "\n"
    target = ROOT / "benchmarks" / "results" / "drills.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    words = " ".join(f"--{name} {value}" for name, value in vars(given).items())
    target.write_text(f"`python benchmarks/drills.py {words}`\n\n{text}")


def kill_lines(whole: Run, count: int, generator: random.Random) -> Iterator[str]:
    """SIGKILL at random moments, in Markdown."""
    zero = 0
    yield from said("| kill | killed during | rows written | complete | went on from | lost | differences |")
    yield from said("|---:|---|---:|---:|---:|---:|---:|")
    for number in range(count):
        run = killed(f"kill{number}", whole, PHASES[number % len(PHASES)], generator)
        marks, written, done = run.marks(), len(rows(run.directory)), complete(run)
        where = "{1} {2}".format(*marks[-1]) if marks else "before training"
        status, at = run.start().wait(), went_on(run)
        found = [*differences(whole.directory, run.directory), *(["exit status"] if status else [])]
        zero += not found
        lost = max(done - at, 0)
        yield from said(f"| {number + 1} | {where} | {written} | {done} | {at} | {lost} | {len(found)} |")
        for name in found[:5]:
            print(f"    differs: {name}")
    yield from said("", f"{zero} of {count} killed runs ended, after the same command again, with zero differences.")


def killed(name: str, whole: Run, phase: str, generator: random.Random) -> Run:
    """A run that was killed in time: one that ended before is tried again, with a shorter wait."""
    for attempt in range(20):
        run = Run(f"{name}-{attempt}", whole.config).start()
        kill(run, whole, phase, generator, share=1 / (1 + attempt))
        if run.wait() == -signal.SIGKILL:
            return run
    raise RuntimeError(f"{name}: every run ended before it was killed")


def kill(run: Run, whole: Run, phase: str, generator: random.Random, share: float = 1.0) -> None:
    """SIGKILL at a moment drawn uniformly from a phase of an iteration, as long as that was in the whole run.

    Args:
        share: the moment is in this first part of the phase.
    """
    iteration = generator.randint(1, ITERATIONS)
    began, duration = moment(whole, phase, iteration)
    delay = generator.uniform(0, duration * share)
    if began is None:
        time.sleep(delay)
    else:
        while run.alive and not any((name, at) == began for _, name, at in run.marks()):
            time.sleep(0.0005)
        time.sleep(delay)
    if run.alive:
        run.signal(signal.SIGKILL)


def moment(whole: Run, phase: str, iteration: int) -> tuple[tuple[str, int] | None, float]:
    """The mark with which a phase begins, None for the start of the process, and how many seconds it lasts."""
    marks = whole.marks()
    if phase == "start":
        return None, marks[0][0] - whole.began + 0.05
    places = [i for i, (_, name, at) in enumerate(marks) if name == phase and at in (iteration, ITERATIONS)]
    place = places[0]
    after = marks[place + 1][0] if place + 1 < len(marks) else whole.began + whole.seconds
    return marks[place][1:], after - marks[place][0]


def fault_lines(whole: Run) -> Iterator[str]:
    """Each fault, in Markdown."""
    yield from said("| fault | exit status | what the user read | lost | after the same command again |")
    yield from said("|---|---:|---|---:|---|")
    survived = 0
    for fault in FAULTS:
        line, fine = fault_line(fault, whole)
        survived += fine
        yield from said(line)
    yield from said(
        "", f"{survived} of {len(FAULTS)} faults survived: nothing lost before the last completed iteration."
    )


def said(*lines: str) -> Sequence[str]:
    """Print as it goes."""
    print(*lines, sep="\n", flush=True)
    return lines


if __name__ == "__main__":
    main()
