"""What the networks of an algorithm give for single responses, from forward passes without padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.algorithms.parts.critic import Critic
from rlhf_lightning.types import Trajectories


def sequences(batch: Trajectories) -> Iterator[tuple[list[int], list[int]]]:
    """Each row as plain lists: prompt ids and action ids."""
    for row in range(len(batch)):
        prompt = batch.context.input_ids[row][batch.context.attention_mask[row]].tolist()
        yield prompt, batch.actions[row][batch.action_mask[row]].tolist()


def token_logprobs(policy: Any, prompt: list[int], actions: list[int]) -> Tensor:
    """Log-probabilities of all tokens at each action, [T, V]."""
    logits = policy.model(torch.tensor([prompt + actions])).logits[0, len(prompt) - 1 : -1]
    return (logits / policy.temperature).log_softmax(-1)


def action_logprobs(policy: Any, batch: Trajectories) -> list[Tensor]:
    """Of each row, the log-probability of its actions, [T]."""
    return [
        token_logprobs(policy, prompt, actions)[range(len(actions)), actions] for prompt, actions in sequences(batch)
    ]


def state_values(module: Any, prompt: list[int], actions: list[int]) -> Tensor | None:
    """Values before each action, [T]; None without a critic."""
    critic = module.critic
    if not isinstance(critic, Critic):
        return None
    shared = critic.options.shared
    trunk = (module.policy if shared else critic.network).model.base_model
    score = critic.network.score if shared else critic.network.model.score
    return score(trunk(torch.tensor([prompt + actions])).last_hidden_state[0, len(prompt) - 1 : -1]).squeeze(-1)


def value_weight(module: Any) -> float:
    """The weight of the critic's loss."""
    return module.critic.options.coef if isinstance(module.critic, Critic) and module.critic.options.shared else 1.0


def trained_parameters(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in module.named_parameters() if not name.startswith("reference.")}


def share_of_b(policy: Any, actions: list[int]) -> float:
    """What the reward `CountsB` pays for a response."""
    words = [policy.tokenizer.convert_ids_to_tokens(action) for action in actions if action > 1]
    return words.count("b") / max(len(words), 1)
