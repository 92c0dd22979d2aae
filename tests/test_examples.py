"""Every example that a help text, a configuration's header or the README shows is run, on small budgets."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlhf_lightning import load_run
from rlhf_lightning.__main__ import main
from rlhf_lightning.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "python -m rlhf_lightning "
STANDS_FOR = {
    "HuggingFaceTB/SmolLM2-135M": "runs/sft/export",  # nothing is downloaded in tests
    "LunarLander-v3": "Acrobot-v1",  # needs a further package
    "harmless-base.jsonl.gz": "pairs.jsonl",
    "harmless-base-1500.jsonl.gz": "pairs.jsonl",
    "configs/hardware/gpu.yaml": "configs/hardware/cpu.yaml",
}
PLACEHOLDERS = re.compile(r"…|\bNAME\b|\bHOST\b|\bSHARED\b|\bFILE\b|\bTASK\.yaml\b|\bCOMMAND\b")

MODEL = ["--backbone.init_args.width", "16", "--backbone.init_args.layers", "1"]
PIPELINE = [
    *MODEL,
    *("--sft.trainer.max_steps", "4", "--sft.trainer.val_check_interval", "2"),
    *("--pairs.count", "40"),
    *("--reward.trainer.max_steps", "2", "--reward.trainer.val_check_interval", "1"),
    *("--policy.trainer.max_epochs", "1", "--policy.data.init_args.rollout_batch_size", "16"),
    *("--policy.data.init_args.eval_prompts", "8"),
]


def commands(text: str) -> Iterator[str]:
    """The commands of this program in some lines, those over several lines joined, without comments."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = re.sub(r"\s{2,}# .*| # .*$", "", line.strip())
        if line.startswith(PROGRAM) and not PLACEHOLDERS.search(line):
            yield " ".join(line.split())


def of_readme() -> Iterator[str]:
    for block in re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S):
        yield from commands(block)


def of_configurations() -> Iterator[str]:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        comments = [line[1:] for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
        yield from commands("\n".join(comments))


def of_help_texts() -> Iterator[str]:
    for command in ("", *COMMANDS):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, "--help"] if command else ["--help"])
        text = printed.getvalue()
        yield from commands(text)
        if example := re.search(r"^example: (.*)\Z", text, re.M | re.S):
            yield from commands(" ".join(example[1].split()))


EXAMPLES = list(dict.fromkeys([*of_help_texts(), *of_configurations(), *of_readme()]))


def small(words: list[str]) -> list[str]:
    """Further options that keep a command short."""
    command, *rest = words
    if command == "pipeline":
        if not any("hh.yaml" in word for word in rest):
            return PIPELINE
        sampling = PIPELINE.index("--pairs.count")  # such pairs are given, not sampled
        return [*PIPELINE[:sampling], *PIPELINE[sampling + 2 :], "--task.init_args.vocabulary", "300"]
    if command == "pairs":
        return ["--count", "40"]
    if command in ("bestof", "winrate"):
        return ["--prompts", "8", *(("--n", "4") if command == "bestof" else ())]
    if command == "sweep":
        budget = ["--trainer.max_epochs=1", "--data.init_args.rollout_batch_size=16", "--data.init_args.eval_prompts=8"]
        return ["--count", "2", *budget]
    if command not in ("fit", "crossval"):
        return []
    files = [word for option, word in itertools.pairwise(rest) if option in ("--config", "-c")]
    contents = [yaml.safe_load(Path(file if Path(file).exists() else ROOT / file).read_text("utf-8")) for file in files]
    data = next(one["data"]["class_path"] for one in reversed(contents) if "data" in one).rpartition(".")[2]
    task = next(one["task"]["class_path"] for one in contents if "task" in one).rpartition(".")[2]
    options = ["--overwrite"] if command == "fit" else ["--folds", "2"]
    if data in ("RolloutDataModule", "EnvironmentDataModule"):
        options += ["--trainer.max_epochs", "1"]
        if task == "Control":
            return [*options, "--data.init_args.eval_episodes", "1"]
        options += ["--data.init_args.rollout_batch_size", "16", "--data.init_args.eval_prompts", "8"]
    else:
        options += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    return options


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with what the examples start from: a small quickstart, its supervised model, pairs and responses."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["pipeline", "--config", "configs/quickstart.yaml", "--name", "quickstart", *PIPELINE]) == 0
    shutil.copytree(folder / "runs/quickstart/sft", folder / "runs/sft")
    shutil.copy(folder / "runs/quickstart/pairs/pairs.jsonl", folder / "pairs.jsonl")
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    answers = [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in pairs]
    rows = [f"{arm},{seed},{place + seed % 3}" for place, arm in enumerate(("a2c", "ppo")) for seed in range(8)]
    (folder / "results.csv").write_text("\n".join(["arm,seed,score", *rows]) + "\n", encoding="utf-8")
    (folder / "responses.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers), encoding="utf-8")
    return folder


@pytest.mark.examples
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(workspace)
    for name, own in STANDS_FOR.items():
        example = example.replace(name, own)
    words = shlex.split(example.removeprefix(PROGRAM))
    words += small(words)
    if "--trainer.devices" in words:  # ranks are started by running the same command line again
        subprocess.run([sys.executable, "-m", "rlhf_lightning", *words], check=True, timeout=300)
    else:
        assert main(words) == 0
    if words[0] == "fit" and "--name" in words:
        assert load_run(workspace / "runs" / words[words.index("--name") + 1]).done


def test_commands_of_the_readme_can_be_copied():
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"^```\n(.*?)^```", text, re.M | re.S) + re.findall(r"`(python [^`]+)`", text)
    left_open = re.compile(r"…|\bYOUR_|(?<!\$)\b(NAME|HOST|SHARED|FILE)\b(?!=)")
    assert [command for command in shown if "rlhf_lightning" in command and left_open.search(command)] == []


def test_there_are_examples_of_every_command():
    shown = {shlex.split(example.removeprefix(PROGRAM))[0] for example in EXAMPLES}
    assert shown >= set(COMMANDS) - {"validate", "test"} | {"fit"}
    assert len(EXAMPLES) > 30
