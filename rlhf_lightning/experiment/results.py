"""What a comparison has shown: its table of arms and its verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from rlhf_lightning.experiment.claims.judging import Judged, judge
from rlhf_lightning.experiment.claims.together import why_impossible
from rlhf_lightning.experiment.collect import MISSING, scores
from rlhf_lightning.experiment.declaration import Declaration
from rlhf_lightning.experiment.measures import Measure
from rlhf_lightning.experiment.spec import PRIMARY, Experiment
from rlhf_lightning.experiment.statistics.arms import describe, mean_estimate
from rlhf_lightning.experiment.statistics.scores import FINISHED, MeasureScale


@dataclass(frozen=True)
class ComparisonResult:
    """The runs of a comparison, and what follows from them.

    Args:
        runs: one row per run, see `runs_table`.
        trials: one row per trial of the tuning; None where nothing was tuned.
    """

    experiment: Experiment
    declaration: Declaration
    runs: pd.DataFrame
    trials: pd.DataFrame | None = None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """What claims are judged by, see `collect.scores`."""
        return scores(self.experiment, self.runs)

    @cached_property
    def scales(self) -> dict[str, MeasureScale]:
        """How each measure is read, by name."""
        pooled = bool(self.experiment.tasks[0].name)
        return {name: _scale(name, measure, pooled=pooled) for name, measure in self.experiment.measures.items()}

    @cached_property
    def judged(self) -> list[Judged]:
        """The verdict on each claim whose arms have all run, and whose measure some run has."""
        ran, finished = set(self.scores["arm"]), self.scores[self.scores["status"] == FINISHED]
        found = {name for name in self.scales if finished[name].notna().any()}
        claims = [claim for claim in self.experiment.claims if {*claim.arms} <= ran and claim.measure in found]
        return judge(claims, self.scores, list(self.scales.values())) if claims else []

    @cached_property
    def not_judged(self) -> list[str]:
        """The claims about arms that have not run, or about something that no run has."""
        judged = [one.claim for one in self.judged]
        return [claim.title for claim in self.experiment.claims if claim not in judged]

    @cached_property
    def impossible(self) -> list[str]:
        """Which claims so many seeds cannot show."""
        return why_impossible(self.experiment.claims, len(set(self.runs["seed"])))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per arm: seeds, failed runs, mean and interval of the primary measure, and means of the others.

        Columns: ``arm``, ``label``, ``seeds``, ``failed``, ``mean``, ``sd``, ``low``, ``high``, ``interval``, on
        several tasks ``iqm`` with its ends, ``published``, one for each further measure, ``used`` and ``seconds``
        (medians), ``trials`` and ``settings``.
        """
        described = describe(self.scores, self.scales[PRIMARY])
        arms, groups = self.experiment.arms, self.experiment.groups
        order = [name for name in (*arms, *groups) if name in set(described["arm"])]
        table = described.set_index("arm").loc[order].reset_index().drop(columns="notes")
        table.insert(1, "label", [arms[name].label if name in arms else name for name in table["arm"]])
        table["published"] = [arms[name].published if name in arms else None for name in table["arm"]]
        finished = self.scores[self.scores["status"] == FINISHED]
        for name in list(self.experiment.measures)[1:]:
            table[name] = [_mean(finished.loc[finished["arm"] == arm, name]) for arm in table["arm"]]
        medians = finished.groupby("arm")[["used", "seconds"]].median().reindex(table["arm"])
        table[["used", "seconds"]] = medians.to_numpy()
        table["trials"] = [self._trials_of(arm) for arm in table["arm"]]
        table["settings"] = [self._settings_of(arm) for arm in table["arm"]]
        return table

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row per claim.

        Columns: ``claim``, ``kind``, ``measure``, ``published``, ``quantity``, ``estimate``, ``low``, ``high``,
        ``verdict``, ``standing`` (of claims that must hold), ``p``, ``p_adjusted``, ``p_equivalence``,
        ``p_equivalence_adjusted``, ``margin``, ``seeds`` and ``notes``.
        """
        rows = [
            {
                "claim": one.claim.title,
                "kind": str(one.claim.kind),
                "measure": one.claim.measure,
                "published": one.claim.published,
                "quantity": one.quantity,
                "estimate": one.estimate,
                "low": one.low,
                "high": one.high,
                "verdict": one.in_words(),
                "standing": None if one.standing is None else str(one.standing),
                "p": one.p_difference,
                "p_adjusted": one.adjusted_difference,
                "p_equivalence": one.p_equivalence,
                "p_equivalence_adjusted": one.adjusted_equivalence,
                "margin": one.claim.equivalence_margin,
                "seeds": len(one.seeds),
                "notes": "; ".join(one.notes),
            }
            for one in self.judged
        ]
        return pd.DataFrame(rows)

    @cached_property
    def made_before(self) -> int:
        """Number of runs that had begun before this was declared, as where other claims are made about them."""
        started = self.runs["started"]
        return int(((started != "") & (started < self.declaration.declared)).sum())

    @cached_property
    def failed(self) -> pd.DataFrame:
        """The runs that failed."""
        return self.runs[~self.runs["status"].isin([FINISHED, MISSING])]

    def _trials_of(self, arm: str) -> int:
        return 0 if self.trials is None else int((self.trials["arm"] == arm).sum())

    def _settings_of(self, arm: str) -> dict[str, Any]:
        """What tuning has chosen for an arm; empty for an arm as shipped."""
        if self.trials is None:
            return {}
        chosen = self.trials[(self.trials["arm"] == arm) & self.trials["chosen"]]
        return dict(chosen.iloc[0]["settings"]) if len(chosen) else {}


def _scale(name: str, measure: Measure, *, pooled: bool) -> MeasureScale:
    """Tasks that are pooled have scales of their own: there a failed run counts as 0."""
    worst = 0.0 if pooled and name == PRIMARY else measure.failed
    return MeasureScale(name, higher_is_better=measure.better == "higher", worst=worst)


def _mean(values: pd.Series) -> float:
    return mean_estimate(values.dropna().to_numpy(dtype=float)).mean if values.notna().any() else math.nan


def finished_share(runs: pd.DataFrame) -> str:
    """How many of the runs have ended, in words."""
    counts = runs["status"].value_counts()
    parts = [f"{counts.get(FINISHED, 0)} of {len(runs)} runs finished"]
    parts += [f"{count} {status}" for status, count in counts.items() if status != FINISHED]
    return ", ".join(parts)


def settings_in_words(settings: dict[str, Any]) -> str:
    """Settings that tuning has chosen, by the ends of their keys."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
