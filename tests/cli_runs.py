"""Helpers for tests that run ``fit`` in this process, on the stand-ins of `cli_fakes`."""

from pathlib import Path

from rlhf_lightning.__main__ import main

FAKES = "tests.cli_fakes"


def toy(model: str = "ToyIterations", *more: str, epochs: int = 6) -> list[str]:
    """Arguments of a run of a toy model, in ``runs/`` of the working directory."""
    data = "ToyHeldout" if model == "ToySteps" else "ToyData"
    words = ["--task", f"{FAKES}.ToyTask", "--backbone", f"{FAKES}.ToyBackbone", "--data", f"{FAKES}.{data}"]
    words += ["--model", f"{FAKES}.{model}", "--trainer.accelerator", "cpu"]
    if model == "ToySteps":
        # validation after every third step, passes of five steps: checkpoints, validation and passes interleave
        words += ["--data.length", "5", "--trainer.max_steps", "11", "--trainer.max_epochs", "-1"]
        words += ["--trainer.val_check_interval", "3", "--trainer.check_val_every_n_epoch", "null"]
        words += ["--checkpoint_every", "2"]
    else:
        words += ["--trainer.max_epochs", str(epochs)]
    return ["fit", *words, *more]


def fit(*words: str) -> int:
    return main(list(words))


def run_files(path: str) -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir())
