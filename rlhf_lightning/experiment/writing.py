"""Write the folder of a comparison's results."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from rlhf_lightning.experiment.collect import unequal
from rlhf_lightning.experiment.declaration import Declaration
from rlhf_lightning.experiment.methods import methods
from rlhf_lightning.experiment.results import ComparisonResult, finished_share
from rlhf_lightning.experiment.statistics.scores import FINISHED
from rlhf_lightning.experiment.tables import arms_rows, claims_rows
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.report.tables import markdown_table

RUNS, TRIALS = "runs.csv", "tuning.csv"


def write_result(result: ComparisonResult, folder: Path) -> list[Path]:
    """Write tables, claims and methods; returns the files in the order in which one reads them."""
    texts = {
        "claims.md": claims_page(result),
        "table.md": f"# {result.experiment.title}\n\n{markdown_table(arms_rows(result))}\n",
        "methods.md": f"# Methods\n\n{methods(result)}",
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    _write_csv(result.table.assign(settings=result.table["settings"].map(json.dumps)), folder / "table.csv")
    write_runs(result.runs, result.trials, folder)
    return [folder / name for name in texts]


def write_runs(runs: pd.DataFrame, trials: pd.DataFrame | None, folder: Path) -> None:
    """Write what everything else can be computed from again."""
    _write_csv(runs, folder / RUNS)
    if trials is not None:
        _write_csv(trials.assign(settings=trials["settings"].map(json.dumps)), folder / TRIALS)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_atomically(path, table.to_csv(index=False, lineterminator="\n"))


def claims_page(result: ComparisonResult) -> str:
    """The claims with their verdicts, in Markdown, and what one must know to believe them."""
    experiment, source = result.experiment, result.experiment.source
    parts = [f"# {experiment.title}"]
    if experiment.question:
        parts.append(experiment.question)
    if source.paper:
        parts.append(f"Source: {source.paper}{f', {source.where}' if source.where else ''}. {source.link}".strip())
    parts += [f"**Caution:** {text}" for text in cautions(result)]
    parts.append(markdown_table(claims_rows(result)) if experiment.claims else "No claims were declared.")
    parts.append(markdown_table(arms_rows(result)))
    parts.append(declared_in_words(result.declaration))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def cautions(result: ComparisonResult) -> list[str]:
    """What stands in the way of believing the verdicts, or will; none if nothing does."""
    found = []
    if result.declaration.later:
        later = result.declaration.later
        keys = ", ".join(later["differs_in"][:6]) + (" …" if len(later["differs_in"]) > 6 else "")
        found.append(f"declared differently since, see {later['folder']}, which differs in {keys}.")
    if result.made_before:
        found.append(f"declared when {result.made_before} of the runs had begun already.")
    if (result.runs["status"] != FINISHED).any():
        found.append(f"not complete: {finished_share(result.runs)}.")
    if difference := unequal(result.experiment, result.runs):
        found.append(f"unequal budgets: {difference} (medians).")
    if len(commits := {commit.removesuffix("-dirty") for commit in result.runs["commit"] if commit}) > 1:
        found.append(f"several versions of the code: {', '.join(sorted(commit[:12] for commit in commits))}.")
    found += [f"too few seeds: {sentence}." for sentence in result.impossible]
    return found


def declared_by_name(declaration: Declaration) -> dict[str, str]:
    """When what was declared, with its hash, and which seeds were added later."""
    seeds = [f"{', '.join(map(str, entry['seeds']))} ({entry['declared'][:10]})" for entry in declaration.seeds]
    return {
        "declared": declaration.declared,
        "budget": declaration.budget,
        "sha256": declaration.digest,
        "rlhf_lightning": declaration.version,
        "commit": declaration.commit or "unknown",
        "seeds": "; later ".join(seeds),
    }


def declared_in_words(declaration: Declaration) -> str:
    """The same as a line."""
    line = "; ".join(f"{name} {text}" for name, text in declared_by_name(declaration).items())
    return f"{line[0].upper()}{line[1:]}."
