"""``bestof``: what the best of n responses are worth, by the reward that selects them and by gold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import LineParser, load_policy, load_reward, positive, track, writable
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = (
    "bestof --config configs/tasks/assistant.yaml --policy runs/quickstart/sft --reward runs/quickstart "
    "--n 64 --prompts 256 --out bestof.csv"
)


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments, task = _parser().parse_with_task(argv)
    assert task is not None  # it is required

    from rlhf_lightning.evaluation.best_of_n import best_of_n_table
    from rlhf_lightning.evaluation.judged_samples import heldout_prompts, sample_groups, score_groups
    from rlhf_lightning.plots import save
    from rlhf_lightning.plots.figures.best_of_n import best_of_n_gains
    from rlhf_lightning.records.files import write_atomically

    target = Path(arguments.out).expanduser()
    if target.suffix in (".png", ".svg"):
        raise UserError(f"--out {arguments.out} is where the figure goes; expected a CSV file")
    prompts = heldout_prompts(task, arguments.prompts, by="bestof")
    sources = {"proxy": load_reward(arguments.reward, task, batch_size=arguments.batch_size)}
    if arguments.reward == "gold":
        sources = {"gold": sources["proxy"]}
    elif (gold := task.gold()) is not None:
        sources["gold"] = gold
    groups = sample_groups(
        load_policy(arguments.policy, temperature=1.0),
        prompts,
        samples=arguments.n,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        track=track,
        title="sample",
    )
    rewards = {
        name: score_groups(source, prompts, groups, batch_size=arguments.batch_size, track=track, title=name)
        for name, source in sources.items()
    }
    table = best_of_n_table(next(iter(rewards.values())), rewards)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, table.to_csv(index=False))
    figures = save(best_of_n_gains(table, name=arguments.policy), target.with_suffix(""))
    _print(table, list(rewards))
    print("".join(_law(table, name) for name in rewards), end="")
    files = ", ".join(map(str, (arguments.out, *figures)))
    print(f"{len(prompts)} different held-out prompts, {arguments.n} responses to each; wrote {files}")


def _print(table: pd.DataFrame, rewards: list[str]) -> None:
    """The table in columns, rewards with half the width of their intervals."""
    print("".join(["     n      KL", *(f"{name:>12} {'(gain since n = 1)':<22}" for name in rewards)]))
    for row in table.to_dict("records"):
        cells = [f"{row['n']:6.0f}  {row['kl']:6.3f}"]
        for name in rewards:
            half = (row[f"{name}_gain_high"] - row[f"{name}_gain_low"]) / 2
            cells.append(f"{row[name]:12.4f} ({row[f'{name}_gain']:+.4f} ± {half:.4f})   ")
        print("".join(cells).rstrip())


def _law(table: pd.DataFrame, name: str) -> str:
    """The scaling law that fits the gains of a reward, as a line; empty where they are too few."""
    from rlhf_lightning.experiment.readings.frontier import fit_scaling_law

    away = table[table["kl"] > 0]
    distances, gains = away["kl"].to_numpy() ** 0.5, away[f"{name}_gain"].to_numpy()
    law = fit_scaling_law(distances, gains, form="best_of_n") if len(away) >= 3 else None
    if law is None:
        return ""
    return f"gain of {name} ≈ d (α − β d) with d = √KL: α {law.alpha:.3f}, β {law.beta:.3f}, R² {law.r2:.4f}\n"


def _parser() -> LineParser:
    parser = LineParser("bestof", COMMANDS["bestof"], EXAMPLE)
    parser.add_argument("--policy", required=True, help="run directory, folder or hub name of the policy")
    parser.add_argument(
        "--reward",
        required=True,
        help="what selects the best response: run directory or folder of a reward model, or gold, the task's own "
        "reward. Gold is measured in any case, where the task has it",
    )
    parser.add_argument(
        "--out", type=writable, required=True, help="CSV file to write; a figure is written beside it (.png, .svg)"
    )
    parser.add_argument(
        "--n",
        type=positive,
        default=64,
        help="responses to each prompt; the table has a row for 1, 2, 4, … up to it, each estimated without bias from "
        "all of them (default %(default)s)",
    )
    parser.add_argument(
        "--prompts", type=positive, default=256, help="different held-out prompts, at most (default %(default)s)"
    )
    parser.add_argument("--max_new_tokens", type=positive, default=48, help="longest response (default %(default)s)")
    parser.add_argument(
        "--batch_size",
        type=positive,
        default=512,
        help="responses at a time, those to one prompt at least (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (default %(default)s)")
    return parser
