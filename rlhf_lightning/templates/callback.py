"""MyCallback: acts on finished rows of metrics, at first by ending a run that leaves its reference too far behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.callbacks.listener import Listener


class MyCallback(Listener):
    """Ends the run when the KL to the reference has been too large several times in a row; shows the best response.

    A `Listener` is a Lightning callback: all of Lightning's hooks are there as well.

    Args:
        limit: on the KL to the reference, in nats per sequence.
        patience: number of rows in a row above the limit that end the run.
    """

    # Every argument is a key of the configuration: trainer.callbacks.init_args.limit.
    def __init__(self, limit: float = 20.0, patience: int = 3) -> None:
        self.limit = limit
        self.patience = patience
        self.rows_above = 0

    def on_row(self, trainer: Trainer, module: LightningModule, row: Mapping[str, float]) -> None:
        """A row of metrics.csv is complete: once per iteration, or per logged step and evaluation.

        The first key is the counter, ``iteration`` or ``step``. Every rank calls with the same numbers, so that all
        ranks decide alike.
        """
        kl = row.get("objective/kl_ref_sequence")
        if kl is None:  # a row that has only an evaluation
            return
        self.rows_above = self.rows_above + 1 if kl > self.limit else 0
        if self.rows_above >= self.patience:
            trainer.should_stop = True

    def on_samples(self, trainer: Trainer, module: LightningModule, samples: Sequence[Mapping[str, Any]]) -> None:
        """Responses to held-out prompts: ``iteration, row, prompt, response, score, gold, kl`` of each."""
        if trainer.is_global_zero and samples:
            best = max(samples, key=lambda sample: sample["score"])
            print(f"best response at {best['iteration']}: {best['response']!r} ({best['score']:.3f})", flush=True)

    # What a resumed run needs is kept in the checkpoint: plain numbers, texts, lists and mappings.
    def state_dict(self) -> dict[str, Any]:
        """The counter."""
        return {"rows_above": self.rows_above}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counter."""
        self.rows_above = state_dict["rows_above"]
