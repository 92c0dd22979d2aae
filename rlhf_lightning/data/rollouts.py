"""`RolloutDataModule`: new responses to prompts for every iteration of a policy optimizer."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rlhf_lightning.data.collection import CollectionDataModule, checked_policy, try_rewards
from rlhf_lightning.data.passes import from_passes
from rlhf_lightning.distributed import FURTHER, Stream, rank, run_seed, world_size
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.models.policy import Policy, TextPolicy
from rlhf_lightning.records.metrics import Experience, Metric
from rlhf_lightning.rewards.handling import RewardHandling
from rlhf_lightning.rewards.objectives import DeclaredWeights, ObjectiveWeights
from rlhf_lightning.rewards.scaling import Scaling
from rlhf_lightning.rewards.source import RewardSource, is_reserved
from rlhf_lightning.rollout.engine import DecodingEngine
from rlhf_lightning.rollout.responses import ResponseCollector
from rlhf_lightning.rollout.statistics import TEXT_METRICS, WIN_RATE, score_statistics, text_statistics
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Prompt, ScoredRollout

log = logging.getLogger(__name__)


class RolloutDataModule(CollectionDataModule):
    """New responses in every iteration.

    Args:
        task: provides the prompts.
        reward: scores the responses; None for the task's own gold reward.
        rollout_batch_size: responses per iteration, across all devices; 32 to 512.
        samples_per_prompt: responses to the same prompt; 4 to 16 for algorithms that compare them.
        max_new_tokens: a response that has not ended by then is cut.
        missing_eos_penalty: subtracted from the reward of a cut response; about one standard deviation of the rewards.
        eval_prompts: number of held-out prompts for evaluation.
        decode_batch_size: number of responses that a device decodes at once; None for all.
        scaling: one or several scalings of the scores before training, applied in order, such as ``RunningZScore`` and
            ``ClipScores``; held-out and reported scores are not scaled.
        weights: weights of the objectives, instead of those of the reward source, or learned. Scores are reported with
            the source's own weights, so that they mean the same in every iteration and run.
        monitors: further sources by name, which are measured and not trained on.
        length_penalty: subtracted for each token beyond ``length_free``; 0.001 to 0.01 standard deviations of the
            rewards.
        length_free: number of tokens without penalty.
        keep_special_tokens: rewards read the special tokens that the policy writes, such as an added ``<answer>``, but
            not the one that ends a response.
        engine: samples the responses; None for `FastDecoder`. `EagerDecoder` does so with the model's own forward.
    """

    def __init__(
        self,
        task: Task,
        reward: RewardSource | None = None,
        rollout_batch_size: int = 64,
        samples_per_prompt: int = 1,
        max_new_tokens: int = 48,
        missing_eos_penalty: float = 0.0,
        eval_prompts: int = 256,
        decode_batch_size: int | None = None,
        scaling: Scaling | list[Scaling] | None = None,
        weights: ObjectiveWeights | None = None,
        monitors: dict[str, RewardSource] | None = None,
        length_penalty: float = 0.0,
        length_free: int = 0,
        keep_special_tokens: bool = False,
        engine: DecodingEngine | None = None,
    ) -> None:
        super().__init__(task)
        task.require(frozenset({"prompts"}), by=type(self).__name__)
        self.gold = task.gold()
        reward = reward if reward is not None else self.gold
        if reward is None:
            raise UserError(
                f"data.init_args.reward is missing: task {type(task).__name__} has no reward of its own; give a reward "
                "model: --data.init_args.reward LearnedReward --data.init_args.reward.init_args.path runs/NAME/export"
            )
        check_counts(
            "data.init_args",
            rollout_batch_size=rollout_batch_size,
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            eval_prompts=eval_prompts,
            decode_batch_size=decode_batch_size,
        )
        if rollout_batch_size % samples_per_prompt:
            raise UserError(
                f"data.init_args.rollout_batch_size is {rollout_batch_size}, which samples_per_prompt "
                f"{samples_per_prompt} does not divide"
            )
        _check_monitors(monitors or {})
        self.reward = reward
        self.rollout_batch_size = rollout_batch_size
        self.samples_per_prompt = samples_per_prompt
        self.eval_prompts = eval_prompts
        self.responses = ResponseCollector(
            reward,
            self.gold,
            monitors=monitors,
            max_new_tokens=max_new_tokens,
            decode_batch_size=decode_batch_size,
            keep_special_tokens=keep_special_tokens,
            engine=engine,
        )
        self.handling = RewardHandling(
            _as_list(scaling),
            weights or DeclaredWeights(),
            missing_eos_penalty=missing_eos_penalty,
            length_penalty=length_penalty,
            length_free=length_free,
        )
        self.handling.weights.of(self.reward.objectives)  # report unknown names before the first rollout

    @property
    def objectives(self) -> Sequence[str]:
        """Names of the objectives that the reward scores separately; empty for a single score."""
        return tuple(self.reward.objectives)

    kind = "policy"
    experience = Experience("sampled responses", counter="samples")

    progress: ClassVar[dict[str, str]] = {
        "objective/score": "score",
        "objective/gold": "gold",
        "objective/kl_ref_sequence": "KL",
        "eval/score": "eval score",
        "eval/perplexity": "eval perplexity",
    }

    def metrics(self) -> tuple[Metric, ...]:
        """Scores, in all and for each objective; monitors; lengths, diversity and forgetting."""
        objectives = (metric for name in self.objectives for metric in _objective_metrics(name))
        monitors = (
            _metric(f"Monitor: {name.replace('_', ' ')}", "measured, not trained on", name, role="heldout")
            for name in self.responses.monitors
        )
        members = "of the reward model's members"
        disagreement = _metric("Disagreement", members, "disagreement", role="warning", floor=0)
        scores = _reward_metrics(self.reward, self.gold)
        return (*scores, *objectives, *monitors, disagreement, WIN_RATE, *TEXT_METRICS)

    def setup(self, stage: str | None = None) -> None:
        """Load the prompts and move the reward source to the device."""
        self.train_prompts = self.task.prompts("train")
        self.heldout_prompts = self.task.prompts("heldout")[: self.eval_prompts]
        if not self.train_prompts or len(self.heldout_prompts) < world_size():
            raise UserError(
                f"{type(self.task).__name__} gives {len(self.train_prompts)} training and {len(self.heldout_prompts)} "
                f"held-out prompts; expected at least one of each, and a held-out one for each device"
            )
        if self.trainer is not None:
            self.responses.to(self.trainer.strategy.root_device)
        if self.rollout_batch_size % world_size():
            raise UserError(
                f"data.init_args.rollout_batch_size is {self.rollout_batch_size}, "
                f"which {world_size()} devices do not divide"
            )
        engine = self.responses.engine
        if not engine.reproducible and rank() == 0:
            log.warning(
                "%s draws other responses each time: a resumed run goes on otherwise than an uninterrupted one, and "
                "runs of the same seed are not paired",
                type(engine).__name__,
            )
        try_rewards(self.responses, self.task, self.heldout_prompts)

    def iteration_prompts(self, iteration: int, attempt: int = 0) -> list[Prompt]:
        """The prompts of a rollout: batches from shuffled passes over the training prompts.

        Args:
            iteration: counted from 0.
            attempt: number of the rollout within the iteration; each has an order of its own.
        """
        count = self.rollout_batch_size // self.samples_per_prompt
        chosen = from_passes(
            self.train_prompts, iteration * count, count, seed=run_seed(), stream=Stream.PROMPT, order=attempt
        )
        return [prompt for prompt in chosen for _ in range(self.samples_per_prompt)]

    def collect(self, policy: Policy, iteration: int, attempt: int = 0) -> ScoredRollout:
        """Sample responses to the prompts of the iteration and score them; every rank gets the global batch.

        The first rollout of an iteration updates running moments now and learned weights at the end of the iteration.
        A further attempt is scaled and weighted in the same way and updates nothing: its responses are selected by
        their rewards, which would bias the moments.
        """
        scored = self.responses.collect(
            _text_policy(policy),
            self.iteration_prompts(iteration, attempt),
            stream=Stream.ROLLOUT,
            iteration=iteration + attempt * FURTHER,
            group_size=self.samples_per_prompt,
        )
        return self.handling.for_training(scored, learn=attempt == 0)

    def collect_heldout(self, policy: Policy) -> ScoredRollout:
        """Sample responses to the held-out prompts, always with the same noise; nothing is scaled."""
        scored = self.responses.collect(
            _text_policy(policy), self.heldout_prompts, stream=Stream.EVALUATION, iteration=0
        )
        return self.handling.for_evaluation(scored)

    def finish(self, scored: ScoredRollout, policy: Policy) -> None:
        """Update learned weights."""
        self.handling.finish(scored)

    def statistics(self, scored: ScoredRollout) -> dict[str, float]:
        """Scores, learned weights, lengths and diversity."""
        row = {f"objective/{name}": value for name, value in score_statistics(scored).items()}
        row |= self.handling.weights.measures()
        return row | {f"rollout/{name}": value for name, value in text_statistics(scored).items()}

    def state_dict(self) -> dict[str, Any]:
        """Running moments and learned weights."""
        return self.handling.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore moments and weights."""
        self.handling.load_state_dict(state_dict)


def _metric(title: str, unit: str, name: str, **options: Any) -> Metric:
    """A number that rollouts and evaluations report under the same name."""
    return Metric(title, unit, f"objective/{name}", f"eval/{name}", **options)


def _reward_metrics(reward: RewardSource, gold: RewardSource | None) -> tuple[Metric, ...]:
    """Of the score that is trained on, and of the true reward where that is another."""
    if reward is gold:
        true = _metric("Gold reward", "the reward that is trained on", "gold", role="gold")
        return (true, _metric("Score", "gold itself", "score", role="score", shown=False))
    if gold is None:
        return (_metric("Reward", "the score that is trained on", "score", role="score"),)
    score = _metric("Proxy reward", "the score that is trained on", "score", role="score")
    return (score, _metric("Gold reward", "the true reward, for measuring only", "gold", role="gold"))


def _objective_metrics(name: str) -> tuple[Metric, ...]:
    """Of one objective: its score, and its weight where that is learned."""
    title = name.replace("_", " ")
    return (
        _metric(f"Score: {title}", "of this objective alone", f"score_{name}", role="score"),
        Metric(f"Weight: {title}", "of the objective in the reward", f"objective/weight_{name}"),
    )


def _as_list(scaling: Scaling | Sequence[Scaling] | None) -> Sequence[Scaling]:
    if scaling is None:
        return ()
    return [scaling] if isinstance(scaling, Scaling) else scaling


def _text_policy(policy: Policy) -> TextPolicy:
    needed = "RolloutDataModule needs a policy that writes text"
    return checked_policy(policy, TextPolicy, needed, expected="--backbone LanguageBackbone")


def _check_monitors(monitors: Mapping[str, RewardSource]) -> None:
    """Refuse names that other metrics have, or that cannot be the name of a metric."""
    for name in monitors:
        taken = is_reserved(name) or name == "disagreement" or name.startswith(("score_", "gold_"))
        if taken or not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"data.init_args.monitors: {name!r} is taken or no name for a metric; expected another")
