"""Say in words what a policy run did, and no more than its numbers show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from rlhf_lightning.plots.style import number, span
from rlhf_lightning.runs import Run

Outcome = Literal["exploited", "declined", "improved", "flat", "trained_on_gold", "no_gold", "unmeasured"]


@dataclass(frozen=True)
class Verdict:
    """How proxy and gold went, in one headline and a few sentences.

    Args:
        outcome: ``exploited`` – gold fell from its peak while the proxy rose on; ``declined`` – gold fell and the
            proxy did not rise on; ``improved`` and ``flat`` – gold rose or stayed, and held to the end.
        peak: iteration at which gold was highest; None where gold did not fall from it.
    """

    outcome: Outcome
    headline: str
    sentences: list[str] = field(default_factory=list)
    peak: int | None = None


def measured(run: Run, metric: str) -> pd.Series:
    """A metric on held-out prompts, or on the training batches where it was not evaluated."""
    held_out = run.series(f"eval/{metric}")
    return held_out if len(held_out) else run.series(f"objective/{metric}")


def on_held_out(run: Run) -> bool:
    """Whether the scores of `measured` come from held-out prompts."""
    return len(run.series("eval/score")) > 0


def judge(run: Run) -> Verdict:
    """What happened in a policy run."""
    score, gold = measured(run, "score"), measured(run, "gold")
    if len(score) < 2 and len(gold) < 2:
        text = f"Fewer than two evaluations: nothing to compare with the model before training (“{run.name}”)."
        return Verdict("unmeasured", "Too early to tell", [text])
    if len(gold) < 2:
        outcome: Outcome = "no_gold"
        headline, sentences, peak = _without_gold(run, score)
    elif len(score) < 2 or _same(score, gold):
        outcome = "trained_on_gold"
        headline, sentences, peak = _on_gold(run, gold)
    else:
        outcome, headline, sentences, peak = _with_both(run, score, gold)
    return Verdict(outcome, headline, [*sentences, *_side_effects(run)], peak)


def tolerance(series: pd.Series) -> float:
    """A difference between two evaluations below this may be noise.

    Three times the noise of single values, estimated from second differences (white noise of deviation σ gives
    √6 σ), and at least 2 % of the series' range.
    """
    values = series.to_numpy(dtype=float)
    noise = 0.0
    if len(values) >= 5:
        noise = float(np.median(np.abs(np.diff(values, 2)))) / 0.6745 / np.sqrt(6)
    return max(3 * noise, 0.02 * float(np.ptp(values)))


def _with_both(run: Run, score: pd.Series, gold: pd.Series) -> tuple[Outcome, str, list[str], int | None]:
    unit = run.axis
    first, last, best = float(gold.iloc[0]), float(gold.iloc[-1]), float(gold.max())
    peak, slack = int(gold.idxmax()), tolerance(gold)
    at_peak = float(score[score.index <= peak].iloc[-1]) if (score.index <= peak).any() else float(score.iloc[0])
    final = float(score.iloc[-1])
    proxy_rose = final - at_peak > tolerance(score)
    whole = f"the proxy went from {_to(score.iloc[0], final)}"
    if best - last > slack:
        rise = f"Gold rose from {_to(first, best)} at {unit} {peak:,}, then fell"
        if best - first <= slack:
            rise = f"Gold fell from {number(first)}"
        fell = f"{rise} to {number(last)} by {unit} {gold.index[-1]:,}"
        if not proxy_rose:
            text = (
                f"{fell}, and the proxy did not rise meanwhile ({_to(at_peak, final)}): "
                "this looks like unstable training rather than exploitation of the reward model."
            )
            return "declined", f"Gold fell after {unit} {peak:,}, and the proxy did not rise", [text], peak
        text = f"{fell}, while the proxy kept rising ({_to(at_peak, final)}): the reward model is being exploited."
        keep = f"The policy worth keeping is the one near {unit} {peak:,}{_kl_at(run, peak)}."
        late = f"Gold peaks at {unit} {peak:,}; the proxy keeps rising"
        headline = late if best - first > slack else "The proxy rises while gold falls"
        return "exploited", headline, [text, keep] if best - first > slack else [text], peak
    if last - first > slack:
        text = f"Gold rose from {_to(first, last)} and held to the end; {whole}."
        return "improved", "Gold rises with the proxy", [text, "No sign of over-optimization so far."], None
    text = f"Gold did not change beyond its noise ({_to(first, last)}); {whole}."
    return "flat", "Gold stays where it was", [text], None


def _on_gold(run: Run, gold: pd.Series) -> tuple[str, list[str], int | None]:
    text = (
        f"The reward trained on is the gold reward itself; it went from "
        f"{_to(gold.iloc[0], gold.iloc[-1])} (best: {number(gold.max())} at {run.axis} {int(gold.idxmax()):,})."
    )
    return "Trained on the gold reward", [text], None


def _without_gold(run: Run, score: pd.Series) -> tuple[str, list[str], int | None]:
    change = score.iloc[-1] - score.iloc[0]
    moved = "rose" if change > tolerance(score) else "fell" if -change > tolerance(score) else "stayed where it was"
    text = (
        f"The proxy {moved} ({_to(score.iloc[0], score.iloc[-1])}). This run has no gold reward, so "
        "whether replies became better cannot be told from its figures: read them."
    )
    return f"The proxy {moved}; there is no gold reward to check it against", [text], None


def _side_effects(run: Run) -> list[str]:
    sentences = []
    win, low, high = (run.series(f"eval/win_rate{end}") for end in ("", "_low", "_high"))
    if len(win):
        interval = ""
        if len(low) and len(high):
            interval = f" (95 % interval {100 * low.iloc[-1]:.0f}–{100 * high.iloc[-1]:.0f} %)"
        judge_of_wins = "gold" if len(measured(run, "gold")) else "the proxy"
        sentences.append(
            f"At {run.axis} {win.index[-1]:,} {judge_of_wins} prefers its replies to the reference model's "
            f"{100 * win.iloc[-1]:.0f} % of the time{interval}."
        )
    length = run.series("eval/length_mean")
    length = length if len(length) > 1 else run.series("rollout/length_mean")
    if len(length) > 1 and not 0.75 < length.iloc[-1] / max(length.iloc[0], 1e-9) < 1.33:
        grew = "grew" if length.iloc[-1] > length.iloc[0] else "shrank"
        sentences.append(f"Replies {grew} from {_to(length.iloc[0], length.iloc[-1])} tokens.")
    perplexity = run.series("eval/perplexity")
    if len(perplexity) > 1 and perplexity.iloc[-1] > 1.5 * perplexity.iloc[0]:
        sentences.append(
            f"Perplexity on demonstrations rose from "
            f"{_to(perplexity.iloc[0], perplexity.iloc[-1])}: what supervised training taught is being forgotten."
        )
    entropy = run.series("objective/entropy")
    if len(entropy) > 1 and entropy.iloc[-1] < 0.25 * entropy.iloc[0]:
        sentences.append(
            f"Entropy fell from {_to(entropy.iloc[0], entropy.iloc[-1])} nats per action: "
            "the policy has nearly stopped exploring."
        )
    return sentences


def _kl_at(run: Run, iteration: int) -> str:
    kl = measured(run, "kl_ref_sequence")
    kl = kl[kl.index <= iteration]
    return f", {number(kl.iloc[-1])} nats from the reference" if len(kl) else ""


def _to(first: float, last: float) -> str:
    return span(float(first), float(last)).replace("→", "to")


def _same(one: pd.Series, other: pd.Series) -> bool:
    shared = one.index.intersection(other.index)
    return len(shared) > 1 and bool(np.allclose(one[shared], other[shared], rtol=1e-4, atol=1e-6))
