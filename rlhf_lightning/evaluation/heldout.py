"""Evaluating a text policy on held-out prompts, in comparison with the reference that it started from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.distributed import failing_together, over_own_rows, own_rows, row_slices
from rlhf_lightning.lightning_seams import callbacks_of
from rlhf_lightning.models.language.text import encode_responses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.rollout.statistics import (
    sample_records,
    score_statistics,
    standard_error,
    text_statistics,
    win_rate,
)
from rlhf_lightning.training.module import Module
from rlhf_lightning.types import Demonstration, ScoredRollout, Trajectories


class HeldoutEvaluation:
    """Scores, KL, win rate and perplexity of a policy on held-out prompts and demonstrations.

    Args:
        module: the algorithm, with its task and its trainer.
        collect: samples the responses of a policy to the held-out prompts, always with the same noise.
    """

    def __init__(self, module: Module, collect: Callable[[TextPolicy], ScoredRollout]) -> None:
        self.module, self.collect = module, collect
        self.microbatch_size = module.optimization.microbatch_size
        self._reference_responses: ScoredRollout | None = None

    @torch.no_grad()
    def row(self, policy: TextPolicy, reference: TextPolicy, position: int) -> dict[str, float]:
        """The metrics, without a prefix; samples of the responses are passed to each `Listener` callback.

        Args:
            reference: compared with the policy; its responses are sampled once.
            position: iteration or step of the samples.
        """
        scored = self.collect(policy)
        if self._reference_responses is None:
            self._reference_responses = self.collect(reference)
        kl = self._kl(scored, policy, reference)
        row = {
            **score_statistics(scored),
            **text_statistics(scored),
            "kl_ref_sequence": kl.double().mean().item(),
            **({"kl_ref_sequence_se": standard_error(kl)} if len(scored) > 1 else {}),
            **win_rate(scored, self._reference_responses),
            **self._forgetting(policy),
        }
        samples = sample_records(scored, kl, iteration=position, count=32)
        for callback in callbacks_of(self.module.trainer):
            if isinstance(callback, Listener):
                callback.on_samples(self.module.trainer, self.module, samples)
        return row

    def _kl(self, scored: ScoredRollout, policy: TextPolicy, reference: TextPolicy) -> Float[Tensor, " B"]:
        """Exact KL to the reference, summed over each response."""

        def exact(part: Trajectories) -> tuple[Tensor]:
            kl = policy.evaluate(part.context, part.actions, part.action_mask, against=reference).kl
            assert kl is not None  # because of against
            return (kl,)

        (kl,) = over_own_rows(exact, scored.rollout, microbatch_size=self.microbatch_size)
        return sequence_sum(kl, scored.rollout.action_mask)

    def _forgetting(self, policy: TextPolicy, limit: int = 256) -> dict[str, float]:
        """Perplexity on at most ``limit`` held-out demonstrations, if the task has any."""
        task = self.module.task
        if "demonstrations" not in task.provides:
            return {}
        examples = list(task.demonstrations("heldout")[:limit])
        mine = [examples[i] for i in own_rows(len(examples)).tolist()]
        with failing_together():
            nats, tokens = demonstration_nats(policy, mine, microbatch_size=self.microbatch_size)
        sums = self.module.reduced({"nats": nats, "tokens": tokens})
        return {"perplexity": perplexity(sums["nats"], sums["tokens"])}


def demonstration_nats(
    policy: TextPolicy, demonstrations: Sequence[Demonstration], *, microbatch_size: int | None
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Negative log-probability of all responses together, in nats, and the number of their tokens."""
    device = policy.device
    nats, tokens = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    for rows in row_slices(len(demonstrations), microbatch_size):
        chosen = [demonstrations[i] for i in rows.tolist()]
        if not chosen:
            continue
        encoded = encode_responses(
            [d.prompt for d in chosen],
            [d.response for d in chosen],
            policy.tokenizer,
            stop_id=policy.stop_ids[0],
            context_length=policy.context_length,
            max_response_tokens=policy.context_length // 2,
        ).to(device)
        outputs = policy.evaluate(encoded.context, encoded.actions, encoded.action_mask)
        nats, tokens = nats - outputs.logprobs.sum(), tokens + encoded.action_mask.sum()
    return nats, tokens


def perplexity(nats: float, tokens: float) -> float:
    """The exponential of the mean nats per token."""
    return torch.tensor(nats / max(tokens, 1)).exp().item()
