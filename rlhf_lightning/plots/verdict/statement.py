"""What a verdict consists of, and the sentences that several kinds of run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import pandas as pd

from rlhf_lightning.plots.kit.style import number, span
from rlhf_lightning.plots.measures import measured, tolerance, win_rate
from rlhf_lightning.records.runs import Run

RunOutcome: TypeAlias = Literal["exploited", "declined", "improved", "flat", "trained_on_gold", "no_gold", "unmeasured"]


@dataclass(frozen=True)
class Verdict:
    """How a run went, in one headline and a few sentences.

    Args:
        outcome: ``exploited`` – gold fell from its peak while the proxy rose on; ``declined`` – the reward fell
            from its peak otherwise; ``improved`` and ``flat`` – it rose or stayed, and held to the end.
        peak: iteration or step at which the reward was highest; None where it did not fall from it.
    """

    outcome: RunOutcome
    headline: str
    sentences: list[str]
    peak: int | None = None


@dataclass(frozen=True)
class Course:
    """How a reward moved, differences within its noise left out.

    Args:
        fell: whether it ended below its best.
        rose: whether it ended above its start, or had risen before it fell.
    """

    first: float
    last: float
    best: float
    peak: int
    fell: bool
    rose: bool

    @classmethod
    def of(cls, reward: pd.Series) -> Course:
        """The course of a reward that was measured twice or more."""
        first, last, best = float(reward.iloc[0]), float(reward.iloc[-1]), float(reward.max())
        slack = tolerance(reward)
        fell = best - last > slack
        return cls(first, last, best, int(reward.idxmax()), fell, (best if fell else last) - first > slack)


def too_early(run: Run) -> Verdict:
    """The verdict on a run that was evaluated less than twice."""
    text = f"Fewer than two evaluations: nothing to compare with the model before training (“{run.name}”)."
    return Verdict("unmeasured", "Too early to tell", [text])


def to(first: float, last: float) -> str:
    """From one value to another: ``0.07 to 1.44``."""
    return span(first, last).replace("→", "to")


def kl_at(run: Run, position: int) -> str:
    """The distance from the reference at an iteration or step, as a clause."""
    kl = measured(run, "kl_ref_sequence")
    kl = kl[kl.index <= position]
    return f", {number(kl.iloc[-1])} nats from the reference" if len(kl) else ""


def replies(run: Run) -> list[str]:
    """Sentences on a text policy's replies: win rate, length, and perplexity on demonstrations."""
    sentences = []
    win, ends = win_rate(run)
    if len(win):
        interval = f" (95 % interval {ends})" if ends else ""
        judge = "gold" if len(measured(run, "gold")) else "the score"
        sentences.append(
            f"At {run.axis} {win.index[-1]:,} {judge} prefers its replies to the reference model's "
            f"{100 * win.iloc[-1]:.0f} % of the time{interval}."
        )
    length = run.series("eval/length_mean")
    length = length if len(length) > 1 else run.series("rollout/length_mean")
    if len(length) > 1 and not 0.75 < length.iloc[-1] / max(length.iloc[0], 1e-9) < 1.33:
        grew = "grew" if length.iloc[-1] > length.iloc[0] else "shrank"
        sentences.append(f"Replies {grew} from {to(length.iloc[0], length.iloc[-1])} tokens.")
    perplexity = run.series("eval/perplexity")
    if len(perplexity) > 1 and perplexity.iloc[-1] > 1.5 * perplexity.iloc[0]:
        sentences.append(
            f"Perplexity on demonstrations rose from {to(perplexity.iloc[0], perplexity.iloc[-1])}: "
            "what supervised training taught is being forgotten."
        )
    return sentences


def exploration(run: Run) -> list[str]:
    """A sentence where a policy has nearly stopped exploring; none otherwise."""
    entropy = run.series("objective/entropy")
    if len(entropy) > 1 and entropy.iloc[-1] < 0.25 * entropy.iloc[0]:
        moved = to(entropy.iloc[0], entropy.iloc[-1])
        return [f"Entropy fell from {moved} nats per action: the policy has nearly stopped exploring."]
    return []


def line_search(run: Run) -> list[str]:
    """A sentence where a line search often found no step; none otherwise."""
    rejections = run.series("trust_region/rejections")
    steps = len(rejections)
    if not steps or rejections.iloc[-1] <= 0.1 * steps:
        return []
    return [f"The line search rejected {rejections.iloc[-1]:.0f} of {steps} steps, which left the policy as it was."]
