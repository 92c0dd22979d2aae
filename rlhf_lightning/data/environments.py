"""`EnvironmentDataModule`: new steps in environments for every iteration of a policy optimizer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.data.collection import CollectionDataModule, checked_policy
from rlhf_lightning.distributed import Stream, failing_together, over_own_rows, own_rows, run_seed, world_size
from rlhf_lightning.errors import UserError, check_counts, check_limits
from rlhf_lightning.models.control.policy import ControlPolicy
from rlhf_lightning.models.moments import RewardScale
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.ops.noise import fold, row_keys
from rlhf_lightning.records.metrics import Experience, Metric
from rlhf_lightning.rollout.environments import Environments, Steps, play
from rlhf_lightning.rollout.episodes import EpisodeLog
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import ObservationContext, Rollout, ScoredRollout


@dataclass
class ScoredSteps(ScoredRollout):
    """Steps in environments, with the episodes that ended in them.

    Args:
        episode_returns: undiscounted return of each of these E episodes, in the environment's own rewards.
        episode_lengths: number of actions of each of these episodes.
        observations: as the environment gave them.
        discounted: discounted returns so far, by which rewards are scaled; None if rewards are not scaled.
    """

    episode_returns: Float[Tensor, " E"] = field(kw_only=True)
    episode_lengths: Int[Tensor, " E"] = field(kw_only=True)
    observations: Float[Tensor, "B T O"] = field(kw_only=True)
    discounted: Float[Tensor, "B T"] | None = None


class EnvironmentDataModule(CollectionDataModule):
    """New steps in environments in every iteration.

    Episodes continue from one iteration to the next. The policy is evaluated on whole episodes in other environments,
    with its most probable actions (the mean of a Gaussian), as in Stable-Baselines3 and RL Zoo.

    Args:
        task: the environment.
        environments: number of environments that are stepped in parallel, across all devices; 4 to 64.
        rollout_batch_size: steps per iteration, across all environments; 256 to 8192.
        normalize_rewards: divide rewards by the running standard deviation of the discounted return.
        reward_gamma: discount of that return, the same as the algorithm's γ; 0.99.
        eval_episodes: number of evaluation episodes, which always start in the same way.
    """

    def __init__(
        self,
        task: Task,
        environments: int = 8,
        rollout_batch_size: int = 2048,
        normalize_rewards: bool = False,
        reward_gamma: float = 0.99,
        eval_episodes: int = 20,
    ) -> None:
        super().__init__(task)
        task.require(frozenset({"environments"}), by=type(self).__name__)
        check_counts(
            "data.init_args",
            environments=environments,
            rollout_batch_size=rollout_batch_size,
            eval_episodes=eval_episodes,
        )
        if rollout_batch_size % environments:
            raise UserError(
                f"data.init_args.rollout_batch_size is {rollout_batch_size}; expected a multiple of "
                f"data.init_args.environments ({environments})"
            )
        limits = {"reward_gamma": (0 <= reward_gamma < 1, "at least 0 and below 1", reward_gamma)}
        check_limits("data.init_args", limits)
        self.count = environments
        self.rollout_batch_size = rollout_batch_size
        self.normalize_rewards = normalize_rewards
        self.reward_gamma = reward_gamma
        self.eval_episodes = eval_episodes
        self._training: Environments | None = None
        self._heldout: Environments | None = None
        self._reset()

    kind = "control"
    experience = Experience("environment steps", counter="env_steps")
    progress: ClassVar[dict[str, str]] = {
        "env_steps": "env steps",
        "objective/score": "return",
        "eval/score": "eval return",
    }

    def metrics(self) -> tuple[Metric, ...]:
        """Returns and lengths of episodes."""
        return (
            Metric("Return", "mean over episodes", "objective/score", "eval/score", role="score"),
            Metric("Episode length", "steps", "rollout/length_mean", "eval/length_mean", floor=0),
            Metric("Episodes", "that the means are of", "rollout/episodes", "eval/episodes", shown=False),
        )

    def setup(self, stage: str | None = None) -> None:
        """Validate the numbers of environments and episodes, and reset all episodes for a new training run.

        Raises:
            UserError: the number of devices does not divide them.
        """
        if self.count % world_size():
            raise UserError(f"data.init_args.environments is {self.count}, which {world_size()} devices do not divide")
        if self.eval_episodes < world_size():
            raise UserError(
                f"data.init_args.eval_episodes is {self.eval_episodes}; expected one for each of {world_size()} devices"
            )
        if stage in (None, "fit"):
            self._reset()

    def teardown(self, stage: str | None = None) -> None:
        """Close the environments; they can be reopened in the same states."""
        for environments in (self._training, self._heldout):
            if environments is not None:
                environments.close()
        self._training = self._heldout = None

    def _reset(self) -> None:
        self.teardown()
        self.episodes = EpisodeLog(self.count)
        self.reward_scale = RewardScale(self.count, gamma=self.reward_gamma) if self.normalize_rewards else None

    # -- collecting --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, policy: Policy, iteration: int, attempt: int = 0) -> ScoredSteps:
        """The next steps in all environments; a rank steps its own environments and gets the global batch.

        A further attempt continues where the last one stopped.
        """
        started = time.perf_counter()
        acting = _control_policy(policy)
        with failing_together():
            if self._training is None:
                self._training = self._opened(self.count, Stream.EPISODE)
                self._training.begin(self.episodes)
            rows = self._training.rows
            keys = fold(row_keys(seed=run_seed(), stream=Stream.ROLLOUT, iteration=iteration, rows=rows), attempt)
            own = play(acting, self._training, steps=self.rollout_batch_size // self.count, keys=keys)
        steps = own.gathered(self.count, policy.device)
        returns, lengths = self.episodes.extend(steps.actions, steps.rewards, steps.ended)
        scored = self._scored(acting, steps, returns, lengths)
        if self.reward_scale is not None:
            discounted = self.reward_scale.extend(steps.rewards, steps.ended)
            rewards = self.reward_scale.scaled(steps.rewards, discounted).to(scored.rewards.dtype)
            scored = replace(scored, rewards=rewards, discounted=discounted)
        return replace(scored, timings={"rollout_seconds": time.perf_counter() - started})

    @torch.no_grad()
    def collect_heldout(self, policy: Policy) -> ScoredSteps:
        """Whole episodes with the policy's most probable actions, always from the same initial states."""
        started, policy = time.perf_counter(), _control_policy(policy)
        with failing_together():
            if self._heldout is None:
                self._heldout = self._opened(self.eval_episodes, Stream.EVALUATION)
            self._heldout.begin(EpisodeLog(self.eval_episodes))
            own = play(policy, self._heldout, steps=self.task.max_episode_steps, once=True)
        steps = own.gathered(self.eval_episodes, policy.device)
        scored = self._scored(policy, steps, steps.rewards.sum(-1), steps.action_mask.sum(-1))
        return replace(scored, timings={"rollout_seconds": time.perf_counter() - started})

    def _opened(self, count: int, stream: Stream) -> Environments:
        rows = own_rows(count)
        return Environments(self.task.environments(len(rows)), self.task.interface(), rows=rows, stream=stream)

    def _scored(
        self, policy: ControlPolicy, steps: Steps, returns: Float[Tensor, " E"], lengths: Int[Tensor, " E"]
    ) -> ScoredSteps:
        self._check(steps)
        rollout = Rollout(
            context=ObservationContext(policy.read(steps.observations), policy.read(steps.next_observations)),
            actions=steps.actions,
            action_mask=steps.action_mask,
            old_logprobs=torch.zeros_like(steps.rewards, dtype=policy.precision),
            terminated=steps.terminated,
            truncated=steps.truncated,
            rows=torch.arange(len(steps.actions), device=steps.actions.device),
        )
        # with the same forward pass as in training, so that the first probability ratio is 1
        (logprobs,) = over_own_rows(
            lambda part: (policy.evaluate(part.context, part.actions, part.action_mask).logprobs,),
            rollout,
            microbatch_size=None,
        )
        return ScoredSteps(
            rollout=replace(rollout, old_logprobs=logprobs),
            rewards=steps.rewards.to(policy.precision),
            scores=steps.rewards.sum(-1),
            episode_returns=returns,
            episode_lengths=lengths,
            observations=steps.observations,
        )

    def _check(self, steps: Steps) -> None:
        """Raise `UserError` if the environment gave a number that is not finite."""
        for name in ("observations", "next_observations", "rewards"):
            bad = (~torch.isfinite(getattr(steps, name))).flatten(1).any(-1).nonzero()
            if len(bad):
                environment = self.task.interface().environment
                raise UserError(f"{environment} gave {name} that are not finite (environment {int(bad[0])})")

    # -- reporting ---------------------------------------------------------------------------------------------

    def statistics(self, scored: ScoredRollout) -> dict[str, float]:
        """Number of the episodes that ended, and their mean return and length if there are any."""
        assert isinstance(scored, ScoredSteps)
        count = len(scored.episode_returns)
        row: dict[str, float] = {"rollout/episodes": count}
        if count:
            row["objective/score"] = scored.episode_returns.mean().item()
            row["rollout/length_mean"] = scored.episode_lengths.double().mean().item()
        return row

    # -- state between iterations -------------------------------------------------------------------------------

    def finish(self, scored: ScoredRollout, policy: Policy) -> None:
        """Update the moments of observations and rewards by the rollout."""
        assert isinstance(scored, ScoredSteps)
        normalizer = _control_policy(policy).normalizer
        if normalizer is not None:
            normalizer.update(scored.observations)
        if self.reward_scale is not None and scored.discounted is not None:
            self.reward_scale.update(scored.discounted)

    def state_dict(self) -> dict[str, Any]:
        """The state of each episode, and the scale of the rewards."""
        scale = {} if self.reward_scale is None else {"reward_scale": self.reward_scale.state_dict()}
        return {"episodes": self.episodes.state_dict(), **scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore episodes and the scale of the rewards.

        Raises:
            UserError: the checkpoint was written with another number of environments or other settings.
        """
        if ("reward_scale" in state_dict) != self.normalize_rewards:
            raise UserError(f"data.init_args.normalize_rewards is {self.normalize_rewards}, unlike in the checkpoint")
        self.episodes.load_state_dict(state_dict["episodes"])
        if self.reward_scale is not None:
            self.reward_scale.load_state_dict(state_dict["reward_scale"])


def _control_policy(policy: Policy) -> ControlPolicy:
    needed = "EnvironmentDataModule needs a policy that acts in environments"
    return checked_policy(policy, ControlPolicy, needed, expected="--backbone ControlBackbone")
