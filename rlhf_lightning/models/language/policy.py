"""A causal language model as a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.language.decoding.forward_decoding import ForwardDecoding
from rlhf_lightning.models.language.decoding.step_decoding import CheckedSteps, StepDecoding
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.markup import stop_ids
from rlhf_lightning.models.language.states import hidden_before
from rlhf_lightning.models.language.text import check_vocabulary
from rlhf_lightning.models.language.trunk import (
    chunk_tokens,
    context_length,
    input_embedding,
    language_head,
    trainable,
)
from rlhf_lightning.models.policy import Decoding, PolicyOutputs, TextPolicy
from rlhf_lightning.ops.kl import Direction
from rlhf_lightning.ops.logprobs import Head, token_kl, token_statistics
from rlhf_lightning.ops.masking import scattered, selected
from rlhf_lightning.types import Context, TokenContext, Trajectories


class LanguagePolicy(TextPolicy):
    """A causal language model that answers prompts token by token.

    Its distribution is over the tokenizer's tokens: ids beyond them, which some models have, are never drawn.

    Args:
        model: any transformers model with a language-model head.
        tokenizer: its tokenizer, with a chat template.
        temperature: divides the logits, 0.7 to 1.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0) -> None:
        check_vocabulary(model, tokenizer)
        super().__init__(
            tokenizer,
            temperature=temperature,
            stop_ids=stop_ids(model, tokenizer),
            context_length=context_length(model),
        )
        self.model = trainable(model)
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1
        self._steps = CheckedSteps()

    def head(self) -> Head:
        """The map from hidden states to the logits of the tokenizer's tokens."""
        head = language_head(self.model)
        if self.vocabulary >= input_embedding(self.model).num_embeddings:
            return head
        return lambda hidden: head(hidden)[..., : self.vocabulary]

    def decoding(self, context: TokenContext, *, samples: int = 1) -> Decoding:
        """Start writing by the model's own forward; each prompt is read once."""
        return ForwardDecoding(self.model, self.head(), context, samples=samples, temperature=self.temperature)

    def fast_decoding(self, context: TokenContext, *, samples: int = 1, room: int) -> Decoding:
        """Start writing by our own step of the architecture, or by the model's own forward where there is none."""
        step = self._steps(self.model)
        if step is None:
            return self.decoding(context, samples=samples)
        return StepDecoding(
            self.model, step, self.head(), context, samples=samples, room=room, temperature=self.temperature
        )

    def evaluate(
        self,
        context: Context,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        against: Self | None = None,
        direction: Direction = "reverse",
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL to another model.

        Both models are evaluated at the temperature of this policy.
        """
        hidden = hidden_before(self.model, context, actions, action_mask)
        at_actions, head = selected(hidden, action_mask), self.head()
        chunk = chunk_tokens(self.model)
        logprobs, entropy = token_statistics(
            at_actions, actions[action_mask], head=head, temperature=self.temperature, chunk_tokens=chunk
        )
        kl = None
        if against is not None:
            other = selected(hidden_before(against.model, context, actions, action_mask), action_mask)
            sides = [(at_actions, head), (other, against.head())]
            (first, first_head), (second, second_head) = sides if direction == "reverse" else sides[::-1]
            kl = token_kl(
                first,
                second,
                head=first_head,
                other_head=second_head,
                temperature=self.temperature,
                chunk_tokens=chunk,
            )
        return PolicyOutputs(
            logprobs=scattered(logprobs, action_mask),
            entropy=scattered(entropy, action_mask),
            kl=None if kl is None else scattered(kl, action_mask),
            hidden=hidden,
        )

    def hidden_before(self, part: Trajectories) -> Float[Tensor, "B T H"]:
        """The hidden state that each action is drawn from."""
        return hidden_before(self.model, part.context, part.actions, part.action_mask)

    def save(self, path: Path) -> None:
        """Write model and tokenizer, chat template included, in the Hugging Face format.

        The generation settings name every token at which this policy stops.
        """
        settings = self.model.generation_config
        named = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        if unnamed := [token_id for token_id in self.stop_ids if token_id not in named]:
            settings.eos_token_id = [*(token_id for token_id in named if token_id is not None), *unnamed]
        save_merged(self.model, path)
        self.tokenizer.save_pretrained(path)
