"""The optimizer: AdamW, its learning rates and their schedule, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from rlhf_lightning.errors import check_counts, check_limits

Schedule: TypeAlias = Literal["constant_with_warmup", "linear", "cosine"]


@dataclass(frozen=True)
class Optimization:
    """AdamW with a schedule.

    Args:
        lr: learning rate; 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones from scratch.
        schedule: course of the learning rate after the warm-up. It is a function of the step and of the length of the
            run: a run that is made longer goes on with the rate that the longer run would have had at that step.
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
        self,
        networks: Mapping[str, nn.Module],
        *,
        length: int,
        lrs: Mapping[str, float] | None = None,
        fused: bool = True,
    ) -> dict[str, Any]:
        """What ``configure_optimizers`` returns: one optimizer with a named group per network.

        Args:
            length: number of schedule steps in the run.
            lrs: learning rates of networks that have their own.
            fused: step in one kernel, which takes gradients as they are: not while a scaler multiplies them.
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
            groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )
        optimizer.register_load_state_dict_pre_hook(_with_own_settings)
        return {"optimizer": optimizer, "lr_scheduler": ScheduledRates(optimizer, partial(self.factor, length=length))}

    def factor(self, step: int, *, length: int) -> float:
        """What learning rates are multiplied by at a step, counted from 0, of a schedule with ``length`` steps."""
        warmup = round(self.warmup * length)
        if step < warmup:
            return step / warmup
        if self.schedule == "constant_with_warmup":
            return 1.0
        rest = max(1, length - warmup)
        if self.schedule == "linear":
            return max(0.0, (length - step) / rest)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * ((step - warmup) / rest))))


# -- checkpoints: the state is theirs, the settings are the configuration's -----------------------------------------


class ScheduledRates(LambdaLR):
    """Learning rates over a run. A checkpoint says how far it is; the rates and their course are settings."""

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {"base_lrs": self.base_lrs, "lr_lambdas": [None] * len(self.lr_lambdas)}
        super().load_state_dict(state_dict | own)
        for group, lr, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = lr * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _with_own_settings(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's moments with the optimizer's own learning rates, betas and weight decay."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if len(own) != len(saved):  # PyTorch refuses it
        return state
    return state | {"param_groups": [a | {"params": b["params"]} for a, b in zip(own, saved, strict=True)]}
