"""Every algorithm as an estimator of ∇J: a module for the enumerable task, with what it claims.

Algorithms say in their own files what their expected gradient is (``variants``); nothing is listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from rlhf_lightning.algorithms import all_algorithms
from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.parts.claims import OTHER, Claim, Variant
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.proofs.expectation import GradientMoments, expected_feedback_gradient, expected_gradient
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.training.module import Module

Provable: TypeAlias = OnPolicy[Any] | FeedbackAlgorithm[Any]

MEASURED = Claim("")
"""Of a policy optimizer that claims nothing. A loss on feedback is not meant to follow ∇J."""


@dataclass(frozen=True)
class Estimator:
    """An algorithm in one of its variants."""

    algorithm: type[Provable]
    variant: Variant

    def module(self, instance: Instance) -> Provable:
        """The algorithm with the policy, the reference and the critic of an instance."""
        settings = dict(self.variant.settings)
        if issubclass(self.algorithm, OnPolicy) and "kl" not in settings:
            settings["kl"] = KLControl(instance.kl_coef, loss=self.variant.kl_loss)
        module = self.algorithm(instance.task, instance.backbone, **settings)
        return instance.place(module, wrong_critic=self.variant.wrong_critic)

    def moments(self, instance: Instance, *, batch_size: int) -> GradientMoments:
        """Mean and variance of its gradient over all batches, of which each is one group."""
        module = self.module(instance)
        if isinstance(module, OnPolicy):
            return expected_gradient(module, instance.scores, batch_size=batch_size)
        return expected_feedback_gradient(module, instance.scores, instance.reference)


def estimators_of(algorithm: type[Module]) -> tuple[Estimator, ...]:
    """The variants of an algorithm; its default settings where it names none, and nothing for other kinds."""
    if not issubclass(algorithm, OnPolicy | FeedbackAlgorithm):
        return ()
    unclaimed = OTHER if issubclass(algorithm, FeedbackAlgorithm) else MEASURED
    variants = algorithm.variants or (Variant(algorithm.__name__, unclaimed),)
    return tuple(Estimator(algorithm, variant) for variant in variants)


@cache
def all_estimators() -> tuple[Estimator, ...]:
    """What the table shows: the variants of every algorithm of the package."""
    return tuple(estimator for algorithm in all_algorithms() for estimator in estimators_of(algorithm))
