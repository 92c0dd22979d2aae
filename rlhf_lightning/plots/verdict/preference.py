"""How a policy that learned from preference pairs went: by gold where there is gold, or by held-out pairs."""

from __future__ import annotations

from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.plots.measures import measured
from rlhf_lightning.plots.verdict.statement import Course, Verdict, kl_at, replies, to, too_early
from rlhf_lightning.records.runs import Run


def judge_preference(run: Run) -> Verdict:
    """Whether gold rose and held, beside what the held-out pairs say."""
    gold, loss = measured(run, "gold"), run.series("eval/loss")
    if max(len(gold), len(loss)) < 2:
        return too_early(run)
    if len(gold) < 2:
        return _without_gold(run)
    course = Course.of(gold)
    if course.fell:
        return _fallen(run, course)
    pairs = _pairs(run)
    if course.rose:
        text = f"Gold rose from {to(course.first, course.last)} and held to the end{kl_at(run, int(gold.index[-1]))}."
        headline = f"Gold rose from {to(course.first, course.last)}"
        return Verdict("improved", headline, [text, *pairs, *replies(run)])
    text = f"Gold did not change beyond its noise ({to(course.first, course.last)})."
    return Verdict("flat", "Gold stays where it was", [text, *pairs, *replies(run)])


def _fallen(run: Run, course: Course) -> Verdict:
    last = int(measured(run, "gold").index[-1])
    if course.rose:
        headline = f"Gold peaks at step {course.peak:,}, then falls"
        text = (
            f"Gold rose from {to(course.first, course.best)} at step {course.peak:,}, then fell to "
            f"{number(course.last)} by step {last:,}{kl_at(run, last)}."
        )
        keep = [f"The policy worth keeping is the one near step {course.peak:,}{kl_at(run, course.peak)}."]
    else:
        headline = f"Gold fell from {to(course.first, course.last)}"
        text, keep = f"{headline} by step {last:,}{kl_at(run, last)}.", []
    return Verdict("declined", headline, [text, *_pairs(run), *keep, *replies(run)], course.peak)


def _without_gold(run: Run) -> Verdict:
    text = "This run has no gold reward, so whether replies became better cannot be told from its figures: read them."
    score = run.series("eval/score")
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
