"""How a text policy went that was trained on a score: proxy against gold."""

from __future__ import annotations

import pandas as pd

from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.plots.measures import has_proxy, measured, tolerance
from rlhf_lightning.plots.verdict.statement import (
    Course,
    Verdict,
    exploration,
    kl_at,
    line_search,
    replies,
    to,
    too_early,
)
from rlhf_lightning.records.runs import Run


def judge_text(run: Run) -> Verdict:
    """Whether gold followed the score that was trained on."""
    score, gold = measured(run, "score"), measured(run, "gold")
    if len(score) < 2 and len(gold) < 2:
        return too_early(run)
    if len(gold) < 2:
        verdict = _without_gold(score)
    elif len(score) < 2 or not has_proxy(run):
        verdict = _on_gold(run, gold)
    else:
        verdict = _with_both(run, score, gold)
    beside = [*replies(run), *exploration(run), *line_search(run)]
    return Verdict(verdict.outcome, verdict.headline, [*verdict.sentences, *beside], verdict.peak)


def _with_both(run: Run, score: pd.Series, gold: pd.Series) -> Verdict:
    course = Course.of(gold)
    if course.fell:
        return _fallen(run, score, gold, course)
    moved = f"the proxy went from {to(score.iloc[0], score.iloc[-1])}"
    if course.rose:
        text = f"Gold rose from {to(course.first, course.last)} and held to the end; {moved}."
        return Verdict("improved", "Gold rises with the proxy", [text, "No sign of over-optimization so far."])
    text = f"Gold did not change beyond its noise ({to(course.first, course.last)}); {moved}."
    return Verdict("flat", "Gold stays where it was", [text])


def _fallen(run: Run, score: pd.Series, gold: pd.Series, course: Course) -> Verdict:
    unit, peak = run.axis, course.peak
    at_peak = float(score[score.index <= peak].iloc[-1]) if (score.index <= peak).any() else float(score.iloc[0])
    final = float(score.iloc[-1])
    rise = f"Gold rose from {to(course.first, course.best)} at {unit} {peak:,}, then fell"
    if not course.rose:
        rise = f"Gold fell from {number(course.first)}"
    fell = f"{rise} to {number(course.last)} by {unit} {gold.index[-1]:,}"
    if final - at_peak <= tolerance(score):
        text = (
            f"{fell}, and the proxy did not rise meanwhile ({to(at_peak, final)}): "
            "this looks like unstable training rather than exploitation of the reward model."
        )
        return Verdict("declined", f"Gold fell after {unit} {peak:,}, and the proxy did not rise", [text], peak)
    text = f"{fell}, while the proxy kept rising ({to(at_peak, final)}): the reward model is being exploited."
    if not course.rose:
        return Verdict("exploited", "The proxy rises while gold falls", [text], peak)
    keep = f"The policy worth keeping is the one near {unit} {peak:,}{kl_at(run, peak)}."
    return Verdict("exploited", f"Gold peaks at {unit} {peak:,}; the proxy keeps rising", [text, keep], peak)


def _on_gold(run: Run, gold: pd.Series) -> Verdict:
    course = Course.of(gold)
    moved = f"from {to(course.first, course.last)}"
    text = (
        f"The reward trained on is the gold reward itself; it went {moved} "
        f"(best: {number(course.best)} at {run.axis} {course.peak:,})."
    )
    fell = "fell" if course.last < course.first else "rose"
    headline = f"Gold, which is trained on, {fell} {moved}"
    if not course.rose and not course.fell:
        headline = "Gold, which is trained on, stays where it was"
    return Verdict("trained_on_gold", headline, [text])


def _without_gold(score: pd.Series) -> Verdict:
    change = score.iloc[-1] - score.iloc[0]
    moved = "rose" if change > tolerance(score) else "fell" if -change > tolerance(score) else "stayed where it was"
    text = (
        f"The reward {moved} ({to(score.iloc[0], score.iloc[-1])}). This run has no gold reward, so "
        "whether replies became better cannot be told from its figures: read them."
    )
    return Verdict("no_gold", f"The reward {moved}; there is no gold reward to check it against", [text])
