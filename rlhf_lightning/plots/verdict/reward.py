"""What is to be said of a reward model: how often it is right, how sure it is, and what else it pays for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.plots.kit.style import fixed, number
from rlhf_lightning.plots.measures import bias_is_clear, chance_error
from rlhf_lightning.records.runs import Run

_CHANGED = {"length": "is only longer", "politeness": "is only politer", "repetition": "only repeats itself"}
"""What was done to a reply, by the name of the bias."""


def describe_reward(run: Run) -> list[str]:
    """Sentences on a reward model's run; none where nothing was measured on held-out pairs."""
    measured = run.evaluation or {}
    return [*_accuracy(run, measured), *_calibration(measured), *_biases(measured), *_members(measured)]


def _accuracy(run: Run, measured: Mapping[str, Any]) -> list[str]:
    logged = run.series("eval/accuracy")
    share = measured.get("accuracy", logged.iloc[-1] if len(logged) else None)
    if share is None:
        return _correlation(measured)
    ceiling = measured.get("ceiling")
    most = f" ({100 * ceiling:.1f} % is the most attainable)" if ceiling is not None else ""
    text = f"The reward model orders {100 * share:.1f} % of held-out pairs as the annotators did{most}."
    train = (measured.get("train") or {}).get("accuracy")
    if train is not None and train - share > 0.1:  # both are of some hundred pairs, and vary by a few points
        text += f" On the pairs that it was trained on it orders {100 * train:.1f} %: it has learned some by heart."
    return [text]


def _correlation(measured: Mapping[str, Any]) -> list[str]:
    """A sentence on a model that was trained on ratings, and orders no pairs."""
    correlation = (measured.get("correlation") or {}).get("pearson")
    if "ratings" not in measured or correlation is None:
        return []
    return [
        f"The reward model's scores correlate with {measured['ratings']:,} held-out ratings at {number(correlation)}."
    ]


def _calibration(measured: Mapping[str, Any]) -> list[str]:
    before, after = measured.get("calibration_error"), measured.get("calibration_error_scaled")
    if before is None:
        return []
    text = f"The probabilities that it states are off by {100 * before:.1f} points on average"
    if after is not None and measured.get("temperature") is not None:
        scaled = f"its scores divided by {number(measured['temperature'])}"
        text += f", by {100 * after:.1f} with {scaled}" if after < before else f", and by no less with {scaled}"
    if measured.get("bins"):
        chance = 100 * chance_error(measured["bins"])
        text += f". On so many pairs perfect ones would be off by about {chance:.1f} points, by chance"
    return [f"{text}."]


def _biases(measured: Mapping[str, Any]) -> list[str]:
    """A sentence for each bias that is neither noise nor negligible."""
    sentences = []
    for row in measured.get("biases") or []:
        if bias_is_clear(row):
            what = _CHANGED.get(row["name"], f"differs in {row['name']} only")
            moved = "higher" if row["change"] > 0 else "lower"
            sentences.append(f"A reply that {what} scores {fixed(abs(row['change']))} standard deviations {moved}.")
    return sentences


def _members(measured: Mapping[str, Any]) -> list[str]:
    members = measured.get("members") or {}
    count, agreement = len(members.get("accuracy") or []), members.get("agreement")
    if count < 2 or agreement is None:
        return []
    return [f"Any two of its {count} members agree on {100 * agreement:.0f} % of the pairs."]
