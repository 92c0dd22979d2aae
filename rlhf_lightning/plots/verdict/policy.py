"""How a policy went: by proxy and gold on text, by gold or held-out pairs from feedback, by its return elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.plots.measures import experience, has_proxy, measured, tolerance
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

_UNKNOWN = "This run has no gold reward, so whether replies became better cannot be told from its figures: read them."


def judge(run: Run) -> Verdict:
    """What happened in a policy run."""
    kinds = {"control": _judge_control, "preference": _judge_preference}
    return kinds.get(run.kind, _judge_text)(run)


# -- on text, by a score ---------------------------------------------------------------------------------------


def _judge_text(run: Run) -> Verdict:
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
    return replace(verdict, sentences=[*verdict.sentences, *beside])


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
    until_peak = score[score.index <= peak]
    at_peak = until_peak.iloc[-1] if len(until_peak) else score.iloc[0]
    final = score.iloc[-1]
    fell = f"Gold fell from {number(course.first)} to {number(course.last)} by {unit} {gold.index[-1]:,}"
    if course.rose:
        fell = _rise_and_fall(run, gold, course)
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
    went = f"{'fell' if course.last < course.first else 'rose'} {moved}"
    if not course.rose and not course.fell:
        went = "stays where it was"
    return Verdict("trained_on_gold", f"Gold, which is trained on, {went}", [text])


def _without_gold(score: pd.Series) -> Verdict:
    change = score.iloc[-1] - score.iloc[0]
    moved = "rose" if change > tolerance(score) else "fell" if -change > tolerance(score) else "stayed where it was"
    text = f"The reward {moved} ({to(score.iloc[0], score.iloc[-1])}). {_UNKNOWN}"
    return Verdict("no_gold", f"The reward {moved}; there is no gold reward to check it against", [text])


def _rise_and_fall(run: Run, gold: pd.Series, course: Course) -> str:
    rise = f"Gold rose from {to(course.first, course.best)} at {run.axis} {course.peak:,}"
    return f"{rise}, then fell to {number(course.last)} by {run.axis} {gold.index[-1]:,}"


# -- from feedback --------------------------------------------------------------------------------------------


def _judge_preference(run: Run) -> Verdict:
    """Whether gold rose and held, beside what the held-out pairs say."""
    gold, loss = measured(run, "gold"), run.series("eval/loss")
    if max(len(gold), len(loss)) < 2:
        return too_early(run)
    if len(gold) < 2:
        return _of_pairs_alone(run)
    course = Course.of(gold)
    if course.fell:
        return _fallen_from_feedback(run, gold, course)
    pairs = _pairs(run)
    if course.rose:
        text = f"Gold rose from {to(course.first, course.last)} and held to the end{kl_at(run, int(gold.index[-1]))}."
        headline = f"Gold rose from {to(course.first, course.last)}"
        return Verdict("improved", headline, [text, *pairs, *replies(run)])
    text = f"Gold did not change beyond its noise ({to(course.first, course.last)})."
    return Verdict("flat", "Gold stays where it was", [text, *pairs, *replies(run)])


def _fallen_from_feedback(run: Run, gold: pd.Series, course: Course) -> Verdict:
    last = int(gold.index[-1])
    if course.rose:
        headline = f"Gold peaks at step {course.peak:,}, then falls"
        text = f"{_rise_and_fall(run, gold, course)}{kl_at(run, last)}."
        keep = [f"The policy worth keeping is the one near step {course.peak:,}{kl_at(run, course.peak)}."]
    else:
        headline = f"Gold fell from {to(course.first, course.last)}"
        text, keep = f"{headline} by step {last:,}{kl_at(run, last)}.", []
    return Verdict("declined", headline, [text, *_pairs(run), *keep, *replies(run)], course.peak)


def _of_pairs_alone(run: Run) -> Verdict:
    text, score = _UNKNOWN, run.series("eval/score")
    if len(score) > 1:
        course = Course.of(score)
        moved = "fell" if course.fell else "rose" if course.rose else "stayed where it was"
        text = f"The score of its replies {moved} ({to(course.first, course.last)}). {text}"
    accuracy = run.series("eval/accuracy")
    feedback = run.description.experience.unit if run.description and run.description.experience else "feedback"
    headline = f"Trained on {feedback}; there is no gold reward to check it against"
    if len(accuracy) > 1:
        headline = f"Held-out accuracy: {100 * accuracy.iloc[0]:.0f} → {100 * accuracy.iloc[-1]:.0f} %"
    return Verdict("no_gold", headline, [*_pairs(run), text, *replies(run)])


def _pairs(run: Run) -> list[str]:
    """What held-out feedback says of the policy."""
    accuracy = run.series("eval/accuracy")
    if len(accuracy) < 2:
        return []
    declared = [metric.unit for metric in run.panels if metric.heldout == "eval/accuracy" and metric.unit]
    unit = declared[0] if declared else "share of pairs ordered rightly"
    share = f"{100 * accuracy.iloc[-1]:.1f} %"
    return [f"Held-out accuracy is {share} ({unit}, by the reward that its probabilities imply)."]


# -- in an environment ----------------------------------------------------------------------------------------


def _judge_control(run: Run) -> Verdict:
    """Whether the mean return rose, and whether it held."""
    returns = measured(run, "score")
    if len(returns) < 2:
        return too_early(run)
    course = Course.of(returns)
    x_axis = experience(run)
    total, best_at = (f"{x_axis.count[place]:,.0f}" for place in (returns.index[-1], course.peak))
    episodes = _episodes(run)
    if course.fell and course.rose:
        headline = f"Mean return rose to {number(course.best)}, then fell to {number(course.last)}"
        text = (
            f"The mean return {episodes} rose from {to(course.first, course.best)} after {best_at} {x_axis.unit}, "
            f"then fell to {number(course.last)} after {total}."
        )
        return Verdict("declined", headline, [text, *line_search(run)], course.peak)
    if not course.rose and not course.fell:
        moved = to(course.first, course.last)
        text = f"The mean return {episodes} did not change beyond its noise ({moved}) in {total} {x_axis.unit}."
        return Verdict("flat", "Mean return stays where it was", [text, *line_search(run)])
    moved = f"{'rose' if course.rose else 'fell'} from {to(course.first, course.last)}"
    text = f"The mean return {episodes} {moved} in {total} {x_axis.unit}"
    if course.rose:
        text = f"{text}; the best was {number(course.best)}, after {best_at}"
    return Verdict("improved" if course.rose else "declined", f"Mean return {moved}", [f"{text}.", *line_search(run)])


def _episodes(run: Run) -> str:
    if not len(run.series("eval/score")):
        return "of training episodes"
    count = run.series("eval/episodes")
    how_many = f"{count.iloc[-1]:.0f} evaluation episodes" if len(count) else "evaluation episodes"
    return f"of {how_many}, with the most probable action at every step,"
