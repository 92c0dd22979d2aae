"""The estimators of the table as weights: what each action's ∇ log π is multiplied with, in plain numbers.

Weights of a batch are one list for each of its responses, which are given by number.
"""

import math
from functools import partial

from tree_oracle import Tree


def each(weights, tree, batch):
    """Responses that know nothing of each other."""
    return [weights(tree, i) for i in batch]


def constant(tree, i, value):
    return [value] * tree.length(i)


def less(tree, i, baseline):
    return [to_go - baseline for to_go in tree.to_go(i)]


def batch_mean(tree, batch):
    mean = sum(tree.total(i) for i in batch) / len(batch)
    return [less(tree, i, mean) for i in batch]


def whitened(weights, tree, batch):
    """Mean 0 and variance 1 over all actions of the batch."""
    lists = each(weights, tree, batch)
    flat = [w for row in lists for w in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((w - mean) ** 2 for w in flat) / len(flat))
    return [[(w - mean) / (deviation + 1e-8) for w in row] for row in lists]


def conservative(tree, batch):
    """(1 − α) + α w with α = ½, w = e^{Â} scaled to mean 1 over actions."""
    raised = [[math.exp(w) for w in row] for row in whitened(partial(Tree.gae, lam=0.95), tree, batch)]
    mean = sum(map(sum, raised)) / sum(map(len, raised))
    return [[0.5 + 0.5 * w / mean for w in row] for row in raised]


def leave_one_out(tree, batch):
    total = sum(tree.total(i) for i in batch)
    return [constant(tree, i, tree.total(i) - (total - tree.total(i)) / (len(batch) - 1)) for i in batch]


def best(tree, batch):
    """The better response alone, in a batch of its own: the mean over responses is taken back."""
    winner = max(range(len(batch)), key=lambda row: tree.total(batch[row]))
    return [constant(tree, i, len(batch) * float(row == winner)) for row, i in enumerate(batch)]


def group(tree, batch, *, std=False, average="sum", priced=True):
    """A response's return against its group's mean, at each of its tokens.

    Args:
        average: what a token's loss is divided by, beside the number of responses.
        priced: whether returns are less the price of the KL.
    """
    returns = [tree.total(i) if priced else tree.scores[i] for i in batch]
    mean = sum(returns) / len(batch)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in returns) / (len(batch) - 1)) + 1e-4 if std else 1.0
    tokens = sum(tree.length(i) for i in batch)
    share = {
        "sum": lambda i: 1.0,
        "response": lambda i: 1 / tree.length(i),
        "token": lambda i: len(batch) / tokens,
    }[average]
    return [constant(tree, i, (r - mean) / deviation * share(i)) for i, r in zip(batch, returns, strict=True)]


def with_kl(weights, kl, tree, batch, *, average="sum"):
    """Less β times the weight that differentiating the KL at the tokens that were drawn gives them."""
    shares = [1 / tree.length(i) if average == "response" else 1.0 for i in batch]
    return [
        [w - tree.beta * share * kl(log_ratio) for w, log_ratio in zip(row, tree.log_ratios[i], strict=True)]
        for row, i, share in zip(weights(tree, batch), batch, shares, strict=True)
    ]


def k2(log_ratio):
    """½ l² has the gradient l ∇ log π, l = log π/π_ref."""
    return log_ratio


def k3(log_ratio):
    """e^{−l} − 1 + l has the gradient (1 − e^{−l}) ∇ log π."""
    return 1 - math.exp(-log_ratio)


def k3_ratio(log_ratio):
    """k3 ∇r + r ∇k3 at r = 1: e^{−l} − 1 + l, and 1 − e^{−l}."""
    return math.exp(-log_ratio) - 1 + log_ratio + k3(log_ratio)


exact_95, wrong_95 = partial(Tree.gae, lam=0.95), partial(Tree.gae, lam=0.95, wrong=True)
exact_1, wrong_1 = partial(Tree.gae, lam=1.0), partial(Tree.gae, lam=1.0, wrong=True)
unpriced = partial(group, priced=False)


def response_advantage(tree, i):
    return constant(tree, i, exact_1(tree, i)[0])


def mean_advantage(tree, i):
    return [w / tree.length(i) for w in response_advantage(tree, i)]


SINGLE = {
    "REINFORCE, whole return": lambda tree, i: constant(tree, i, tree.total(i)),
    "REINFORCE, reward to go": Tree.to_go,
    "REINFORCE, moving average (1.0 so far)": lambda tree, i: less(tree, i, 1.0),
    "REINFORCE, exact values": exact_1,
    "REINFORCE, wrong values": wrong_1,
    "A2C, λ = 0, exact values": partial(Tree.gae, lam=0.0),
    "A2C, λ = 0, wrong values": partial(Tree.gae, lam=0.0, wrong=True),
    "A2C, λ = 1, wrong values": wrong_1,
    "PPO, λ = 0.95, exact values": exact_95,
    "PPO, λ = 0.95, wrong values": wrong_95,
    "PPO, penalty": exact_95,
    "PPO, ratio of responses": response_advantage,
    "PPO, geometric mean ratio": mean_advantage,
    "NPG, before F⁻¹": exact_95,
}
"""Estimators that add up over responses: weights of one response."""

JOINT = {
    "REINFORCE, batch mean": batch_mean,
    "REINFORCE, whitened": partial(whitened, Tree.to_go),
    "REINFORCE++": partial(whitened, Tree.to_go),
    "PPO, λ = 0.95, exact values, whitened": partial(whitened, exact_95),
    "TRPO, before F⁻¹ (whitened)": partial(whitened, exact_95),
    "RLOO": leave_one_out,
    "GRPO, no std, response sum": group,
    "GRPO, no std, response sum, k2 in the loss": partial(with_kl, unpriced, k2),
    "GRPO, no std, response sum, k3 in the loss": partial(with_kl, unpriced, k3),
    "GRPO, no std, response sum, k3 × ratio in the loss": partial(with_kl, unpriced, k3_ratio),
    "GRPO, no std, response mean": partial(group, average="response"),
    "GRPO, no std, token mean": partial(group, average="token"),
    "GRPO, std, response sum": partial(group, std=True),
    "GRPO, std, geometric mean ratio": partial(group, std=True, average="response"),
    "GRPO, std, response mean, k3 in the loss": partial(
        with_kl, partial(unpriced, std=True, average="response"), k3, average="response"
    ),
    "RAFT": best,
    "CPI": conservative,
}
"""The others: weights of a batch."""
