"""What helpful costs in concise: RLOO on the assistant task's gold components, over weights and with learned ones.

    python benchmarks/pareto.py --sft runs/quickstart/sft/export

Harmless always weighs 0.25, helpful and concise share the other 0.75, so that the price of the KL weighs the same in
all runs. One more run maximizes helpful and learns the weights that hold concise and harmless above a floor. Figures
are means over the 256 held-out prompts at the last iteration, never at the best one; finished runs are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf_lightning import load_run
from rlhf_lightning.plots import save
from rlhf_lightning.plots.figures import pareto
from rlhf_lightning.plots.figures.pareto import front
from rlhf_lightning.records.runs import Run
from rlhf_lightning.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVES = ("helpful", "concise", "harmless")
CONCISE = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.75)
FLOORS = {"concise": -0.03, "harmless": 0.15}
SHIPPED = ("--config", "configs/tasks/assistant.yaml", "--config", "configs/algorithms/rloo.yaml")


def main() -> None:
    """Run them one after the other, draw the figure, print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", required=True, help="supervised model to start from")
    parser.add_argument("--concise", nargs="*", type=float, default=CONCISE, help="weights (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=100, help="of each run (default %(default)s)")
    parser.add_argument("--kl_coef", type=float, default=0.05, help="price of a nat (default %(default)s)")
    parser.add_argument("--runs_dir", default="runs/pareto", help="where the runs go (default %(default)s)")
    parser.add_argument("--results", default=str(ROOT / "benchmarks" / "results"), help="folder of the table")
    parser.add_argument("--figures", default=str(ROOT / "docs"), help="folder of the figure")
    arguments = parser.parse_args()
    directory = Path(arguments.runs_dir)
    options = ["--backbone.init_args.checkpoint", arguments.sft, "--trainer.max_epochs", str(arguments.iterations)]
    options += ["--model.init_args.kl.coef", str(arguments.kl_coef), "--runs_dir", str(directory)]

    names = {f"concise{weight:g}": declared(weight) for weight in arguments.concise} | {"lagrangian": learned()}
    for number, (name, chosen) in enumerate(names.items(), start=1):
        print(f"{number} of {len(names)}: {name}", flush=True)
        if not (directory / name / "DONE").exists():
            run("fit", *SHIPPED, *options, *chosen, "--name", name)
    runs = [load_run(directory / name) for name in names]
    text = table(runs)
    print(text)
    Path(arguments.results).mkdir(parents=True, exist_ok=True)
    (Path(arguments.results) / "pareto.md").write_text(f"`python benchmarks/pareto.py --sft …` (one seed)\n\n{text}")
    figure, _ = save(pareto(runs, *OBJECTIVES), directory / "pareto")
    shutil.copy(figure, Path(arguments.figures) / "pareto.png")


def declared(concise: float) -> list[str]:
    """Options for fixed weights."""
    weights = {"helpful": round(0.75 - concise, 9), "concise": concise, "harmless": 0.25, "polite": 0.0, "fluent": 0.0}
    key = "--data.init_args.weights"
    return [key, "DeclaredWeights", f"{key}.init_args.weights", json.dumps(weights)]


def learned() -> list[str]:
    """Options for weights that are learned."""
    key = "--data.init_args.weights"
    settings = {"maximize": "helpful", "floors": json.dumps(FLOORS), "lr": "0.5"}
    return [
        key,
        "Lagrangian",
        *(word for name, value in settings.items() for word in (f"{key}.init_args.{name}", value)),
    ]


def run(*words: str) -> None:
    """One command, quietly."""
    subprocess.run([sys.executable, "-m", "rlhf_lightning", *words], check=True, stdout=subprocess.DEVNULL)


def table(runs: list[Run]) -> str:
    """In Markdown: before training, and the end of each run with the weights of its last iteration."""
    ends = [{name: run.series(f"eval/gold_{name}") for name in OBJECTIVES} for run in runs]
    best = front([(float(end["helpful"].iloc[-1]), float(end["concise"].iloc[-1])) for end in ends])
    head = ["weights of helpful, concise, harmless", *OBJECTIVES, "KL (nats/sequence)", "none is better in both"]
    rows = [head]
    rows.append(["before training", *(f"{ends[0][name].iloc[0]:.3f}" for name in OBJECTIVES), "0.0", ""])
    for index, (one, end) in enumerate(zip(runs, ends, strict=True)):
        kl = one.series("eval/kl_ref_sequence").iloc[-1]
        values = [f"{end[name].iloc[-1]:.3f}" for name in OBJECTIVES]
        rows.append([weights(one), *values, f"{kl:.1f}", "yes" if index in best else ""])
    floors = " and ".join(f"{name} of at least {floor:g}" for name, floor in FLOORS.items())
    return f"{markdown_table(rows)}\n\nLearned weights maximize helpful with {floors} in training.\n"


def weights(one: Run) -> str:
    """Those of the last iteration."""
    given = one.setting("data.init_args.weights.init_args.weights")
    if given:
        return ", ".join(f"{given[name]:g}" for name in OBJECTIVES)
    return "learned: " + ", ".join(f"{one.series(f'objective/weight_{name}').iloc[-1]:.2f}" for name in OBJECTIVES)


if __name__ == "__main__":
    main()
