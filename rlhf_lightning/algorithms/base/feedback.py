"""`FeedbackAlgorithm`: what all optimizers share that learn a policy from given feedback, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.text import TextLearner
from rlhf_lightning.algorithms.parts.claims import Variant
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import GRADIENT, KL_TO_REFERENCE
from rlhf_lightning.algorithms.parts.reference import Reference
from rlhf_lightning.data.collection import try_rewards
from rlhf_lightning.data.feedback import FeedbackDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.distributed import Stream, world_size
from rlhf_lightning.errors import UserError, check_counts, located
from rlhf_lightning.evaluation.heldout import HeldoutEvaluation
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import EncodedResponses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.ops.ratios import sequence_log_ratio
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.rollout.responses import ResponseCollector
from rlhf_lightning.rollout.statistics import TEXT_METRICS, WIN_RATE
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Feedback, Prompt, ScoredRollout

Example = TypeVar("Example", bound=Feedback)

_WIN_RATE = ("win_rate", "win_rate_low", "win_rate_high")


class FeedbackAlgorithm(TextLearner[Example]):
    """A policy that learns from given feedback, and its frozen reference: the policy that it started as.

    Losses are averaged over examples. Every evaluation, one before the first step included, has the loss on held-out
    feedback, and what the policy says to held-out prompts. ``data_class`` says what kind of feedback is read.

    Args:
        reward: judges responses to held-out prompts, as ``eval/score``; it is not trained on.
        max_response_tokens: longer responses keep their first tokens; None for half the context. Comparisons of which
            two responses are the same tokens then are left out and counted.
        max_new_tokens: a sampled response that has not ended by then is cut.
        eval_prompts: held-out prompts that the policy is judged on.
        log_every: steps between rows of metrics.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})
    data_class: ClassVar[type[FeedbackDataModule[Any]]] = PreferenceDataModule
    kind = "preference"
    variants: ClassVar[tuple[Variant, ...]] = ()
    """What ``prove`` measures of it, with the claims; empty measures the default settings."""

    group: ClassVar[str]
    """Of the metrics in training: ``GROUP/loss``, and ``GROUP/NAME`` for each that `loss_sum` reports."""

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        reward: RewardSource | None = None,
        max_response_tokens: int | None = None,
        max_new_tokens: int = 48,
        eval_prompts: int = 256,
        log_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, log_every)
        check_counts(
            "model.init_args",
            max_response_tokens=max_response_tokens,
            max_new_tokens=max_new_tokens,
            eval_prompts=eval_prompts,
        )
        self.max_response_tokens = max_response_tokens
        self.eval_prompts = eval_prompts
        self.reference = Reference(KLControl(0.0), microbatch_size=optimization.microbatch_size)
        self.reward, gold = reward, task.gold()
        judge = reward or gold or _Unjudged()
        self._responses = ResponseCollector(judge, gold, max_new_tokens=max_new_tokens)
        # Gold is not reported as a score: nobody trains on it here, and checkpoints are chosen by scores.
        scores = ("score", *(f"score_{name}" for name in judge.objectives))
        self._left_out = () if judge is reward else scores if judge is gold else (*scores, *_WIN_RATE)

    # -- networks ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build policy and reference, once."""
        if not hasattr(self, "policy"):
            super().configure_model()
            self.reference.freeze(self.policy)

    def setup(self, stage: str) -> None:
        """Check that there are held-out prompts, and move the reward source to the device."""
        super().setup(stage)
        self._responses.reward.to(self.trainer.strategy.root_device)
        self._prompts: Sequence[Prompt] = self.task.prompts("heldout")[: self.eval_prompts]
        if len(self._prompts) < world_size():
            raise UserError(
                f"{type(self.task).__name__} gives {len(self._prompts)} held-out prompts; "
                "expected one for each device at least"
            )
        try_rewards(self._responses, self.task, self._prompts)
        self._heldout = HeldoutEvaluation(self, self._respond)

    # -- examples ----------------------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Example]) -> EncodedResponses:
        """All responses in one batch: the first one of each example, then the second one of each."""
        prompts = [example.prompt for example in examples]
        count = len(examples[0].responses)
        responses = [example.responses[number] for number in range(count) for example in examples]
        return self.encode_texts(prompts * count, responses)

    def owners(self, examples: Sequence[Example]) -> Sequence[int]:
        """The example of each response, in the order of `encode`."""
        return [*range(len(examples))] * len(examples[0].responses)

    def log_ratios(self, encoded: EncodedResponses) -> Float[Tensor, " B"]:
        """Log π(y|x) − log π_ref(y|x) of whole responses; the reference has no gradient."""
        logprobs = self.logprobs(self.policy, encoded)
        with torch.no_grad(), self.stopwatch.timed_on(self.device, "reference"):
            ref_logprobs = self.logprobs(self.reference.text_policy, encoded)
        return sequence_log_ratio(logprobs, ref_logprobs, encoded.action_mask)

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """The loss and all further sums, as means."""
        return {f"{self.group}/{name}": value for name, value in self.reported(means).items()}

    def reported(self, means: dict[str, float]) -> dict[str, float]:
        """Convert the means of a batch, or of an evaluation, into the metrics that are reported.

        Args:
            means: of each over the examples of a batch, or over all held-out ones.
        """
        return means

    # -- evaluation --------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Measure the starting point, unless the run goes on or evaluates nothing."""
        if self.goes_on or not self.trainer.enable_validation:
            return
        self.announce("evaluates for the first time")
        # Lightning counts them here only where the first pass ends with a validation
        batches = self.trainer.num_val_batches or [len(self.data.val_dataloader())]
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.on_validation_epoch_start()
            for number in range(int(sum(batches))):
                self.validation_step(number, number)
            self.on_validation_epoch_end()

    def heldout_row(self, means: dict[str, float], weight: float) -> dict[str, float]:
        """Means over the held-out examples, and the policy's own responses beside those of the reference."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context(), located(self.position()):
            sampled = self._heldout.row(self.policy, self.reference.text_policy, self.steps)
        return self.reported(means) | {name: value for name, value in sampled.items() if name not in self._left_out}

    def _respond(self, policy: TextPolicy) -> ScoredRollout:
        """Responses to the held-out prompts, always with the same noise."""
        return self._responses.collect(policy, self._prompts, stream=Stream.EVALUATION, iteration=0)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the path and hash of the reference instead of its weights."""
        super().on_save_checkpoint(checkpoint)
        self.reference.save(checkpoint, path=getattr(self.backbone, "checkpoint", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the reference is the same."""
        super().on_load_checkpoint(checkpoint)
        self.reference.load(checkpoint, algorithm=type(self).__name__)

    # -- the run's record --------------------------------------------------------------------------------------

    def metrics(self) -> tuple[Metric, ...]:
        """What replies to held-out prompts are worth, the loss, and the replies themselves."""
        gold = Metric("Gold reward", "the true reward, for measuring only", heldout="eval/gold", role="gold")
        score = Metric("Score", "of the replies; not trained on", heldout="eval/score", role="score")
        loss = Metric("Loss", "per example", f"{self.group}/loss", "eval/loss", own=True)
        return (gold, score, WIN_RATE, KL_TO_REFERENCE, loss, *self.own_metrics(), *TEXT_METRICS, GRADIENT)

    def own_metrics(self) -> tuple[Metric, ...]:
        """Those of the further sums in ``measured``."""
        return ()

    def progress(self) -> dict[str, str]:
        """The loss and what is evaluated."""
        own = {f"{self.group}/{name}": name for name in ("loss", "accuracy") if name in ("loss", *self.measured)}
        evaluated = {"accuracy": "accuracy", "gold": "gold", "score": "score", "kl_ref_sequence": "KL"}
        return own | {f"eval/{name}": f"eval {label}" for name, label in evaluated.items()}


class _Unjudged(RewardSource):
    """A score of 0 for every response, where there is neither a reward nor gold."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """Zeros."""
        return torch.zeros(len(responses))
