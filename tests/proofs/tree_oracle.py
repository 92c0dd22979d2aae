"""The enumerable task by loops over its tree: nothing here uses a policy's own code, autograd or the exact objective.

A gradient estimate is given by weights: g = (1/B) Σᵢ Σₜ wᵢₜ ∇ log π(aᵢₜ|sᵢₜ) over the B responses of a batch.
"""

from __future__ import annotations

import math
from itertools import product

import torch

from rlhf_lightning.tasks.bandit.tree import RESPONSES

LENGTH = 3


def steps(text):
    """Prefix and token of each action of a response, as numbers; a full response has no end-of-sequence token."""
    letters = text.split()
    found = [(RESPONSES.index(" ".join(letters[:t])), "ab".index(letter) + 1) for t, letter in enumerate(letters)]
    return found if len(letters) == LENGTH else [*found, (RESPONSES.index(text), 0)]


STEPS = [steps(text) for text in RESPONSES]


def softmax(logits):
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


class Tree:
    """An instance in plain numbers.

    Args:
        at: the instance.
        gamma: discount.
    """

    def __init__(self, at, gamma=1.0):
        self.gamma = gamma
        self.beta = at.kl_coef
        self.scores = at.scores.tolist()
        self.errors = at.value_errors().tolist()
        self.rows = [softmax(row) for row in at.policy.logits.tolist()]
        self.reference_rows = [softmax(row) for row in at.reference.logits.tolist()]
        self.p = [math.prod(self.rows[s][a] for s, a in path) for path in STEPS]
        self.log_ratios = [[math.log(self.rows[s][a] / self.reference_rows[s][a]) for s, a in path] for path in STEPS]

    # -- rewards and values of response i ------------------------------------------------------------------------

    def length(self, i):
        return len(STEPS[i])

    def rewards(self, i):
        rewards = [-self.beta * log_ratio for log_ratio in self.log_ratios[i]]
        rewards[-1] += self.scores[i]
        return rewards

    def to_go(self, i):
        rewards = self.rewards(i)
        return [sum(self.gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]

    def total(self, i):
        return self.to_go(i)[0]

    def value(self, prefix):
        """By recursion over what can follow."""
        worth = 0.0
        for token, probability in enumerate(self.rows[prefix]):
            reward = -self.beta * math.log(probability / self.reference_rows[prefix][token])
            following = 2 * prefix + token
            if token == 0:
                reward += self.scores[prefix]
            elif following >= len(self.rows):
                reward += self.scores[following]
            else:
                reward += self.gamma * self.value(following)
            worth += probability * reward
        return worth

    def values(self, i, wrong=False):
        """Before each action of a response."""
        return [self.value(s) + wrong * self.errors[s] for s, _ in STEPS[i]]

    def gae(self, i, lam, wrong=False):
        """Σₖ (γλ)^{k−t} δₖ, δₖ = rₖ + γ V(sₖ₊₁) − V(sₖ), with nothing behind a response."""
        rewards, values = self.rewards(i), [*self.values(i, wrong), 0.0]
        deltas = [reward + self.gamma * values[k + 1] - values[k] for k, reward in enumerate(rewards)]
        return [
            sum((self.gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))
        ]

    # -- gradients -----------------------------------------------------------------------------------------------

    def log_gradient(self, prefix, token):
        """∇ log π(token|prefix): 1[k = token] − π(k|prefix) in the prefix's row of the table, 0 elsewhere."""
        gradient = torch.zeros(len(self.rows), 3, dtype=torch.float64)
        gradient[prefix] = -torch.tensor(self.rows[prefix], dtype=torch.float64)
        gradient[prefix, token] += 1
        return gradient.view(-1)

    def weighted(self, i, weights):
        """Σₜ wₜ ∇ log π(aₜ|sₜ) of response i."""
        return sum(w * self.log_gradient(s, a) for w, (s, a) in zip(weights, STEPS[i], strict=True))

    def expected(self, weights):
        """E[Σₜ wₜ ∇ log π(aₜ|sₜ)] over responses, from their weights by number."""
        return sum(self.p[i] * self.weighted(i, weights(i)) for i in range(len(STEPS)))

    def gradient(self):
        """∇J at γ = 1: E[∇ log p(τ) Σₜ rₜ]."""
        assert self.gamma == 1
        return self.expected(lambda i: [self.total(i)] * self.length(i))

    def moments(self, estimate, size):
        """Mean and variance of an estimate over all ordered batches.

        Args:
            estimate: of a batch, from the responses' numbers.
        """
        found = {batch: estimate(batch) for batch in product(range(len(STEPS)), repeat=size)}
        p = {batch: math.prod(self.p[i] for i in batch) for batch in found}
        mean = sum(p[batch] * gradient for batch, gradient in found.items())
        return mean, sum(p[batch] * (gradient - mean) @ (gradient - mean) for batch, gradient in found.items())

    def of_weights(self, weights):
        """An estimate from the weights of a batch: one list for each of its responses."""
        return lambda batch: sum(self.weighted(i, w) for i, w in zip(batch, weights(batch), strict=True)) / len(batch)
