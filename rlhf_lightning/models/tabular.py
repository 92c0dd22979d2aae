"""A policy and a critic that are tables: one row of logits, or one value, for each beginning of a response.

A response is a row of the letters a and b, three at most; the end-of-sequence token closes it. So there are 15
prefixes. They are numbered level by level: 0 is the empty one, and token k leads from prefix n to 2 n + k, k being 1
for a and 2 for b. The first 7 can be continued, the last 8 are full. Each prefix is also one whole response, which has
the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.critic import TextCritic
from rlhf_lightning.models.policy import Policy, PolicyOutputs, TextPolicy
from rlhf_lightning.ops.kl import Direction
from rlhf_lightning.ops.logprobs import entropy_of, exact_kl, tempered_log_softmax
from rlhf_lightning.types import TokenContext

TOKENS = ("</s>", "a", "b")
"""The vocabulary, in the order of the ids."""
DEPTH = 3
"""Most letters of a response."""
OPEN, PREFIXES = 7, 15
"""Prefixes that can be continued, and all of them."""

CONTEXT_LENGTH = 128
"""Nothing is read, so this only has to leave room for whatever limit of new tokens a configuration sets."""


def following(prefix: Int[Tensor, "*N"], token: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """The prefix that a token leads to: the same after the end-of-sequence token, or after a letter too many."""
    return torch.where((token > 0) & (prefix < OPEN), 2 * prefix + token, prefix)


def prefixes_before(actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Number of the prefix that each action continues; 0 where the mask is False."""
    prefix = actions.new_zeros(len(actions))
    before = []
    for token in torch.where(action_mask, actions, 0).unbind(1):
        before.append(prefix)
        prefix = following(prefix, token)
    return torch.where(action_mask, torch.stack(before, dim=1), 0)


class TabularPolicy(TextPolicy):
    """A softmax over the three tokens after each prefix; a full response can only be closed.

    The prompt is not read. Responses of at most three new tokens are cut where they are full, longer limits let them be
    closed: that takes one more token, of probability 1.

    Args:
        tokenizer: the three tokens.
        logits: of each token after each prefix that can be continued.
        temperature: sampling, log-probabilities, entropy and KL all describe softmax(logits / temperature).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, logits: Float[Tensor, "7 3"], *, temperature: float = 1.0
    ) -> None:
        super().__init__(tokenizer, temperature=temperature, stop_ids=[0], context_length=CONTEXT_LENGTH)
        self.logits = nn.Parameter(logits)

    def distributions(self) -> Float[Tensor, "15 3"]:
        """Log-probabilities of the tokens after each prefix."""
        chosen = tempered_log_softmax(self.logits, temperature=self.temperature)
        closed = chosen.new_tensor([0.0, -math.inf, -math.inf])
        return torch.cat([chosen, closed.expand(PREFIXES - OPEN, -1)])

    def decoding(self, context: TokenContext, *, samples: int = 1) -> TabularDecoding:
        """Begin to write, each time with the empty prefix."""
        return TabularDecoding(self, len(context) * samples)

    def evaluate(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        against: TabularPolicy | None = None,
        direction: Direction = "reverse",
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL."""
        prefixes = prefixes_before(actions, action_mask)
        logprobs = self.distributions()[prefixes]
        zeros = logprobs.new_zeros(action_mask.shape)
        taken = torch.where(action_mask, actions, 0)[..., None]
        kl = None
        if against is not None:
            others = against.distributions()[prefixes]
            kl = exact_kl(logprobs, others) if direction == "reverse" else exact_kl(others, logprobs)
            kl = torch.where(action_mask, kl, zeros)
        return PolicyOutputs(
            logprobs=torch.where(action_mask, logprobs.gather(-1, taken).squeeze(-1), zeros),
            entropy=torch.where(action_mask, entropy_of(logprobs), zeros),
            kl=kl,
        )

    def save(self, path: Path) -> None:
        """Write the logits and the tokenizer."""
        _save(self, path)
        self.tokenizer.save_pretrained(path)


class TabularDecoding:
    """Responses in the middle of being written: each is its prefix.

    Args:
        policy: whose table is read once.
        count: number of responses.
    """

    def __init__(self, policy: TabularPolicy, count: int) -> None:
        self.table = policy.distributions()
        self.prefixes = torch.zeros(count, dtype=torch.long, device=self.table.device)

    def distribution(self) -> Float[Tensor, "n 3"]:
        """Log-probabilities of the next token."""
        return self.table[self.prefixes]

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Go on behind these tokens."""
        self.prefixes = following(self.prefixes, tokens)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with these responses only."""
        self.prefixes = self.prefixes[rows]


class TabularCritic(TextCritic):
    """One value for each prefix, or one for each of several objectives O.

    Args:
        table: the values of the 15 prefixes.
    """

    def __init__(self, table: Float[Tensor, "N ..."]) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def values(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T *O"]:
        """Value of the prefix before each action; there is no trunk."""
        return self.table[prefixes_before(actions, action_mask)]

    def save(self, path: Path) -> None:
        """Write the values."""
        _save(self, path)


class TabularBackbone(Backbone):
    """Tables in place of networks, for the task that is small enough to enumerate.

    Args:
        scale: standard deviation of the policy's logits at the start, which are drawn from the run's seed; 0 starts
            from the uniform policy.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 <= scale < math.inf:
            raise UserError(f"backbone.init_args.scale must not be negative, got {scale}")
        self.scale = scale

    def policy(self, interface: Callable[[], PreTrainedTokenizerBase], *, temperature: float = 1.0) -> TabularPolicy:
        """A policy at its starting point.

        Raises:
            UserError: the task has other tokens.
        """
        tokenizer = interface()
        expected = {token: number for number, token in enumerate(TOKENS)}
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.get_vocab() != expected:
            raise UserError(
                f"backbone TabularBackbone knows the tokens {', '.join(TOKENS)} alone; expected task Bandit"
            )
        generator = torch.Generator().manual_seed(run_seed())
        logits = self.scale * torch.randn(OPEN, len(TOKENS), generator=generator)
        return TabularPolicy(tokenizer, logits, temperature=temperature)

    def critic(
        self, policy: Policy, *, init: str | None = None, shared: bool = False, outputs: int | None = None
    ) -> TabularCritic:
        """A critic that starts at 0.

        Raises:
            UserError: a trunk or a reward model is asked for.
        """
        if shared:
            raise UserError("model.init_args.critic.shared is true, and backbone TabularBackbone has no trunk to share")
        if init is not None:
            raise UserError(f"model.init_args.critic.init is {init}, and backbone TabularBackbone cannot start from it")
        shape = (PREFIXES,) if outputs is None else (PREFIXES, outputs)
        return TabularCritic(torch.zeros(shape, dtype=policy.precision))


def _save(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    save_file(module.state_dict(), path / "table.safetensors")
