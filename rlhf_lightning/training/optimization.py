"""The optimizer: AdamW, its learning rates and their schedule, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from transformers import get_scheduler

from rlhf_lightning.errors import check_counts, check_limits

Schedule: TypeAlias = Literal["constant_with_warmup", "linear", "cosine"]


@dataclass(frozen=True)
class Optimization:
    """AdamW with a schedule.

    Args:
        lr: learning rate; 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones from scratch.
        schedule: course of the learning rate after the warm-up.
        warmup: share of the run over which it rises from 0.
        max_grad_norm: gradients are scaled down to this norm, separately for each network; None leaves them.
        weight_decay: decoupled weight decay.
        betas: of Adam.
        eps: of Adam.
        microbatch_size: sequences per device whose activations exist at one time; None for all at once.
            Trades memory for time and changes results by rounding only, which bf16-mixed makes visible: there metrics
            differ by 1e-4 to 1e-1.
    """

    lr: float = 1e-4
    schedule: Schedule = "constant_with_warmup"
    warmup: float = 0.0
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    microbatch_size: int | None = None

    def __post_init__(self) -> None:
        schedules = get_args(Schedule)
        limits = {
            "lr": (0 < self.lr < math.inf, "above 0", self.lr),
            "schedule": (self.schedule in schedules, f"one of {', '.join(schedules)}", self.schedule),
            "warmup": (0 <= self.warmup <= 1, "a share of the run between 0 and 1", self.warmup),
            "max_grad_norm": (
                self.max_grad_norm is None or self.max_grad_norm > 0,
                "above 0 (null for no limit)",
                self.max_grad_norm,
            ),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more", self.weight_decay),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "at least 0 and below 1", list(self.betas)),
            "eps": (0 <= self.eps < math.inf, "0 or more", self.eps),
        }
        check_limits("optimization", limits)
        check_counts("optimization", microbatch_size=self.microbatch_size)

    @property
    def needs_length(self) -> bool:
        """Whether the schedule depends on the length of the run."""
        return self.warmup > 0 or self.schedule != "constant_with_warmup"

    def build(
        self, networks: Mapping[str, nn.Module], *, length: int, lrs: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """What ``configure_optimizers`` returns: one optimizer with a named group per network.

        Args:
            length: number of schedule steps in the run.
            lrs: learning rates of networks that have their own.
        """
        groups = [
            {
                "params": [p for p in network.parameters() if p.requires_grad],
                "name": name,
                "lr": (lrs or {}).get(name, self.lr),
            }
            for name, network in networks.items()
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        scheduler = get_scheduler(
            self.schedule, optimizer, num_warmup_steps=round(self.warmup * length), num_training_steps=length
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
