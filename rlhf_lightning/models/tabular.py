"""A policy and a critic that are tables: one row of logits, or one value, for each prefix of a response.

A response consists of at most three letters a and b, closed by the end-of-sequence token, so there are 15 prefixes.
They are numbered level by level: 0 is the empty prefix, and token k leads from prefix n to 2 n + k, where k is 1 for a
and 2 for b. The first 7 can be continued, the last 8 are full. Each prefix is also a complete response, which has the
same number.
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
from rlhf_lightning.models.distributions import Categorical
from rlhf_lightning.models.policy import Policy, TextPolicy
from rlhf_lightning.models.state import save_weights
from rlhf_lightning.ops.logprobs import tempered_log_softmax
from rlhf_lightning.ops.masking import masked
from rlhf_lightning.types import Context, TokenContext, Trajectories

TOKENS = ("</s>", "a", "b")
"""The vocabulary, in the order of the ids."""
DEPTH = 3
"""Maximum number of letters of a response."""
OPEN, PREFIXES = 7, 15
"""Number of prefixes that can be continued, and of all prefixes."""

FILE = "table.safetensors"

CONTEXT_LENGTH = 128
"""The prompt is not read, so this only needs to exceed the limit of new tokens of any configuration."""


def next_prefix(prefix: Int[Tensor, "*N"], token: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """The prefix that a token leads to; unchanged by the end-of-sequence token, and once it is full."""
    return torch.where((token > 0) & (prefix < OPEN), 2 * prefix + token, prefix)


def prefixes_before(actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Number of the prefix that each action continues; 0 where the mask is False."""
    prefix = actions.new_zeros(len(actions))
    before = []
    for token in masked(actions, action_mask).unbind(1):
        before.append(prefix)
        prefix = next_prefix(prefix, token)
    return masked(torch.stack(before, dim=1), action_mask)


class TabularPolicy(TextPolicy):
    """A softmax over the three tokens after each prefix; a full response can only be closed.

    The prompt is not read. A limit of three new tokens cuts full responses; with a larger limit they are closed by one
    more token, which has probability 1.

    Args:
        logits: of each token after each prefix that can be continued.
        temperature: divides the logits.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, logits: Float[Tensor, "7 3"], *, temperature: float = 1.0
    ) -> None:
        super().__init__(tokenizer, temperature=temperature, stop_ids=[0], context_length=CONTEXT_LENGTH)
        self.logits = nn.Parameter(logits)

    def distributions(self) -> Float[Tensor, "15 3"]:
        """Log-probabilities of the tokens after each prefix."""
        after_open = tempered_log_softmax(self.logits, temperature=self.temperature)
        after_full = after_open.new_tensor([0.0, -math.inf, -math.inf])
        return torch.cat([after_open, after_full.expand(PREFIXES - OPEN, -1)])

    def decoding(self, context: TokenContext, *, samples: int = 1) -> TabularDecoding:
        """Start writing; each response starts with the empty prefix."""
        return TabularDecoding(self, len(context) * samples)

    def action_distribution(self, context: Context, actions: Tensor, action_mask: Bool[Tensor, "B T"]) -> Categorical:
        """After the prefix that each action continues."""
        return Categorical(self.distributions()[prefixes_before(actions, action_mask)])

    def save(self, path: Path) -> None:
        """Write the logits and the tokenizer."""
        save_weights(self, path / FILE)
        self.tokenizer.save_pretrained(path)


class TabularDecoding:
    """The state of responses that are being written: the prefix of each."""

    def __init__(self, policy: TabularPolicy, count: int) -> None:
        self.table = policy.distributions()
        self.prefixes = torch.zeros(count, dtype=torch.long, device=self.table.device)

    def distribution(self) -> Float[Tensor, "n 3"]:
        """Log-probabilities of the next token."""
        return self.table[self.prefixes]

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Append a token to each response."""
        self.prefixes = next_prefix(self.prefixes, tokens)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Continue with these responses only."""
        self.prefixes = self.prefixes[rows]


class TabularCritic(TextCritic):
    """One value for each prefix, or one for each prefix and each of several objectives O.

    Args:
        table: the values of the 15 prefixes.
    """

    def __init__(self, table: Float[Tensor, "N ..."]) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def values(self, part: Trajectories, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, "B T *O"]:
        """Value of the prefix before each action; ``trunk`` is not used."""
        return self.table[prefixes_before(part.actions, part.action_mask)]

    def save(self, path: Path) -> None:
        """Write the values."""
        save_weights(self, path / FILE)


class TabularBackbone(Backbone):
    """Tables in place of networks, for the task that is small enough to enumerate.

    Args:
        scale: standard deviation of the policy's initial logits, which are drawn with the seed of the run; 0 starts
            from the uniform policy.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 <= scale < math.inf:
            raise UserError(f"backbone.init_args.scale must not be negative, got {scale}")
        self.scale = scale

    def policy(self, interface: Callable[[], object], *, temperature: float = 1.0) -> TabularPolicy:
        """A policy at its starting point.

        Raises:
            UserError: the task has other tokens.
        """
        tokenizer = interface()
        vocabulary = {token: number for number, token in enumerate(TOKENS)}
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.get_vocab() != vocabulary:
            raise UserError(
                f"backbone TabularBackbone knows the tokens {', '.join(TOKENS)} alone; expected task Bandit"
            )
        generator = torch.Generator().manual_seed(run_seed())
        logits = self.scale * torch.randn(OPEN, len(TOKENS), generator=generator)
        return TabularPolicy(tokenizer, logits, temperature=temperature)

    def critic(
        self, policy: Policy, *, init: str | None = None, shared: bool = False, outputs: int | None = None
    ) -> TabularCritic:
        """A critic whose values start at 0.

        Raises:
            UserError: it should share a trunk, or start from a reward model.
        """
        if shared:
            raise UserError("model.init_args.critic.shared is true, and backbone TabularBackbone has no trunk to share")
        if init is not None:
            raise UserError(f"model.init_args.critic.init is {init}, and backbone TabularBackbone cannot start from it")
        shape = (PREFIXES,) if outputs is None else (PREFIXES, outputs)
        return TabularCritic(torch.zeros(shape, dtype=policy.precision))
