"""How a policy in an environment went: by the return of whole evaluation episodes."""

from __future__ import annotations

from rlhf_lightning.plots.kit.style import number
from rlhf_lightning.plots.measures import experience, measured
from rlhf_lightning.plots.verdict.statement import Course, Verdict, line_search, to, too_early
from rlhf_lightning.records.runs import Run


def judge_control(run: Run) -> Verdict:
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
