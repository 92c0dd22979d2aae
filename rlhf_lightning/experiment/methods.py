"""How a comparison was made, as a paragraph that can go into a paper."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from rlhf_lightning.experiment.claims.base import listed
from rlhf_lightning.experiment.results import ComparisonResult
from rlhf_lightning.experiment.spec import UNITS
from rlhf_lightning.experiment.statistics.arms import FEW_SEEDS
from rlhf_lightning.experiment.statistics.scores import FINISHED

REFERENCES = {
    "Student": "W. S. Gosset (Student), The probable error of a mean, Biometrika 1908",
    "BCa": "B. Efron, Better bootstrap confidence intervals, JASA 1987",
    "Holm": "S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979",
    "Schuirmann": "D. J. Schuirmann, A comparison of the two one-sided tests procedure, J. Pharmacokin. Biopharm. 1987",
    "Patterson": "A. Patterson et al., Empirical design in reinforcement learning, JMLR 2024",
    "Agarwal": "R. Agarwal et al., Deep RL at the edge of the statistical precipice, NeurIPS 2021",
}


def methods(result: ComparisonResult) -> str:
    """The paragraph, in Markdown, with its references."""
    sentences = [
        _compared(result),
        _seeds(result),
        _tuned(result),
        _budget(result),
        _measure(result),
        _tests(result),
        _failures(result),
        _software(result.runs, result),
    ]
    text = " ".join(sentence for sentence in sentences if sentence)
    named = [reference for key, reference in REFERENCES.items() if key in text]
    return "\n".join([text, "", *(f"- {reference}." for reference in named), ""])


def _compared(result: ComparisonResult) -> str:
    ran, on_tasks = set(result.runs["arm"]), set(result.runs["task"])
    arms = [arm.label for name, arm in result.experiment.arms.items() if name in ran]
    tasks = [task.name for task in result.experiment.tasks if task.name and task.name in on_tasks]
    on = f" on {listed(tasks)}" if tasks else ""
    return f"We compared {listed(arms)}{on}."


def _seeds(result: ComparisonResult) -> str:
    seeds = result.runs["seed"].unique()
    entries = result.declaration.seeds
    added = sum(len(entry["seeds"]) for entry in entries[1:])
    later = f", {added} of them added after the first results were known" if added else ""
    return (
        f"Every arm was trained with the same {len(seeds)} seeds ({_ranges(seeds)}{later}); the runs of one seed share "
        "prompts, sampling noise and all models that were trained before, and are compared with each other."
    )


def _ranges(seeds: Iterable[int]) -> str:
    ordered = sorted(int(seed) for seed in seeds)
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}" if len(ordered) > 1 else str(ordered[0])
    return ", ".join(map(str, ordered))


def _tuned(result: ComparisonResult) -> str:
    tuning = result.experiment.tuning
    if tuning is None or result.trials is None:
        return (
            "The settings are those that ship with the package, or as declared; nothing was tuned for this comparison."
        )
    count = int(result.trials.groupby("arm").size().max())
    as_shipped = [arm.label for arm in result.experiment.arms.values() if arm.name not in tuning.spaces]
    rest = f" ({listed(as_shipped)} as shipped)" if as_shipped else ""
    return (
        f"Each arm was tuned by {count} trials, the shipped settings and {count - 1} drawn at random from a declared "
        f"space, on seeds of their own ({_ranges(tuning.seeds)}){rest} (Patterson et al. 2024)."
    )


def _budget(result: ComparisonResult) -> str:
    unit = result.experiment.equal
    if unit is None:
        return "The arms were not given equal budgets."
    column = "seconds" if unit == "seconds" else "used"
    used = result.runs.loc[result.runs["status"] == FINISHED, column].median()
    return f"Budgets are equal in {UNITS[unit]}: {used:,.0f} per run (median)."


def _measure(result: ComparisonResult) -> str:
    primary = result.experiment.primary
    reading = type(primary.reading)
    about = (reading.__doc__ or "").strip().splitlines()[0].rstrip(".")
    margin = f" Differences below {result.experiment.margin:g} do not matter." if result.experiment.margin else ""
    better = "more is better" if primary.better == "higher" else "less is better"
    return f"The primary measure is {primary.metric} ({about[0].lower()}{about[1:]}; {better}).{margin}"


def _tests(result: ComparisonResult) -> str:
    few = len(result.runs["seed"].unique()) < FEW_SEEDS
    interval = "Student's" if few else "bias-corrected and accelerated bootstrap (BCa)"
    both = " and exact sign-flip tests, both of which must agree," if few else ""
    pooled = " Tasks are pooled on one scale (Agarwal et al. 2021)." if result.experiment.tasks[0].name else ""
    when = "after some of the runs had begun" if result.made_before else "before the runs"
    return (
        f"Intervals are {interval} at 95 %. Claims were declared {when} and are decided by two-sided paired t "
        f"tests{both} and by two one-sided tests for equivalence (Schuirmann 1987), at 5 % over all claims together "
        f"(Holm 1979).{pooled}"
    )


def _failures(result: ComparisonResult) -> str:
    if result.failed.empty:
        return "No run failed."
    counts = result.failed["arm"].value_counts()
    each = ", ".join(f"{count} of {arm}" for arm, count in counts.items())
    return f"{len(result.failed)} runs failed or diverged ({each}); they count as the worst value of the scale."


def _software(runs: pd.DataFrame, result: ComparisonResult) -> str:
    commits = [commit for commit in runs["commit"].unique() if commit]
    shown = ", ".join(commit[:12] for commit in commits)
    code = f" (commit{'s' if len(commits) > 1 else ''} {shown})" if commits else ""
    versions, hardware = (_listed_once(runs[column]) for column in ("versions", "hardware"))
    others = f" with {versions}" if versions else ""
    where = f", on machines with {hardware}" if hardware else ""
    return f"All runs were made with rlhf_lightning {result.declaration.version}{code}{others}{where}."


def _listed_once(texts: pd.Series) -> str:
    """Everything that some texts list, each once; our own version stands elsewhere."""
    parts = dict.fromkeys(part for text in texts for part in str(text).split(", ") if part)
    return ", ".join(part for part in parts if not part.startswith("rlhf_lightning "))
