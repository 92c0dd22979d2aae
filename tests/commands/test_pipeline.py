"""The pipeline command: what it runs, what it leaves out, and how it ends. Stages are played by a stand-in."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.pipeline import processes as running
from rlhf_lightning.pipeline import stages as described
from rlhf_lightning.records.inputs import Input, digest, write_inputs

FILES = {
    "task.yaml": "task: {class_path: Assistant}\nbackbone: {class_path: LanguageBackbone, init_args: {width: 96}}\n",
    "quick.yaml": """
task: {class_path: Assistant}
pipeline:
  sft: {config: sft.yaml, trainer.max_steps: 520}
  pairs: {count: 8000}
  reward: {config: [reward.yaml]}
  policy: {config: ppo.yaml, trainer: {max_epochs: 100}}
""",
    "sft.yaml": "model: {class_path: SFT}\n",
    "reward.yaml": "model: {class_path: RewardModeling}\n",
    "ppo.yaml": "model: {class_path: PPO}\n",
}


@pytest.fixture(autouse=True)
def _with_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time
    for name, text in FILES.items():
        Path(name).write_text(text)


def result(command):
    """A text that differs when the command's arguments or the contents of its inputs differ."""
    words = [word for word in command if word != "--overwrite"]
    files = [path for word in words for path in (Path(word), Path(word) / "model") if path.is_file()]
    return hashlib.sha256("".join([*words, *(path.read_text() for path in files)]).encode()).hexdigest()


@pytest.fixture
def stages(monkeypatch):
    """Plays the stages; each writes what the real one would. ``stages.failing`` maps a stage to its exit status."""

    class Played:
        def __init__(self):
            self.commands, self.failing, self.cut = [], {}, set()

        def names(self):
            ran = [c[c.index("--name") + 1] if "--name" in c else "pairs" for c in self.commands]
            self.commands.clear()
            return ran

        def __call__(self, command, *_, **__):
            ended = mock.Mock(returncode=self.played(list(command)))
            ended.poll.return_value = ended.returncode
            return ended

        def played(self, command):
            self.commands.append(command)
            options = dict(itertools.pairwise(command))
            if command[0] == "pairs":
                name, folder = "pairs", Path(options["--out"]).parent
            else:
                name, folder = options["--name"], Path(options["--runs_dir"]) / options["--name"]
            if name in self.failing:
                return self.failing[name]
            if (folder / "DONE").exists():
                assert "--overwrite" in command, "fit refuses a finished directory"
                (folder / "DONE").unlink()
            if command[0] == "pairs":
                Path(options["--out"]).write_text(result(command))
                return 0
            (folder / "config.yaml").write_text("model: 1")
            read = [Path("data.jsonl"), *(Path(word) for word in command if word.endswith("/export"))]
            write_inputs(folder, [Input("task", str(path), digest(path)) for path in read if path.exists()])
            if name in self.cut:
                return 143
            (folder / "export").mkdir(exist_ok=True)
            (folder / "export" / "model").write_text(result(command))
            (folder / "DONE").write_text("")
            return 0

    played = Played()
    monkeypatch.setattr(running, "_spawn", played)
    return played


def run(*words):
    return main(["pipeline", "--config", "quick.yaml", "--name", "q", *words])


START = "--backbone.init_args.checkpoint runs/q/sft/export"
COMMANDS = [
    "fit --config quick.yaml --config sft.yaml --seed_everything 1 --runs_dir runs/q --name sft "
    "--trainer.max_steps 520",
    "pairs --config quick.yaml --policy runs/q/sft/export --out runs/q/pairs/pairs.jsonl --seed 1 --count 8000",
    "fit --config quick.yaml --config reward.yaml --seed_everything 1 --runs_dir runs/q --name reward "
    f"{START} --data.init_args.pairs runs/q/pairs/pairs.jsonl",
    "fit --config quick.yaml --config ppo.yaml --seed_everything 1 --runs_dir runs/q --name policy "
    f"{START} --data.init_args.reward LearnedReward "
    "--data.init_args.reward.init_args.path runs/q/reward/export --trainer.max_epochs 100",
]


def printed(capsys, *words):
    assert run("--print-commands", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("python -m rlhf_lightning ") for line in lines)
    return [line.removeprefix("python -m rlhf_lightning ") for line in lines]


def test_pipeline_prints_plain_commands(capsys):
    assert printed(capsys) == COMMANDS
    assert not Path("runs").exists()


def test_pipeline_runs_the_commands_that_it_prints(stages, capsys):
    assert run() == 0
    assert [" ".join(command) for command in stages.commands] == COMMANDS
    shown = capsys.readouterr().out
    assert "made runs/q/policy/export" in shown
    assert "next: python -m rlhf_lightning report runs/q" in shown
    assert all((Path("runs/q") / name / "DONE").exists() for name in ("sft", "pairs", "reward", "policy"))


def test_pipeline_hands_options_to_one_stage_and_to_all(capsys):
    words = [
        "--seed",
        "3",
        "--policy.trainer.max_epochs",
        "5",
        "--pairs.count=50",
        "--task.init_args.path",
        "a b.jsonl",
    ]
    sft, pairs, reward, policy = printed(capsys, *words, "--trainer.devices", "2", "--sft.model.init_args.x", "-1")
    assert all("--task.init_args.path 'a b.jsonl'" in line for line in (sft, pairs, reward, policy))
    assert "--seed_everything 3" in sft
    assert "--seed 3 --count 50" in pairs
    assert sft.endswith("--trainer.max_steps 520 --model.init_args.x -1")
    assert policy.endswith("--trainer.max_epochs 5")
    assert "--trainer.devices 2" in policy
    assert "--trainer.devices" not in pairs
    assert "max_epochs 100" not in policy


def test_pipeline_pretrained_model_is_where_the_first_stage_starts(capsys):
    lines = printed(capsys, "--backbone.init_args.checkpoint", "org/model")
    assert "--backbone.init_args.checkpoint org/model" in lines[0]
    assert all(START in line and "org/model" not in line for line in lines[2:])
    assert "org/other" in printed(capsys, "--reward.backbone.init_args.checkpoint", "org/other")[2]


def test_pipeline_gold_policy_takes_no_reward_model(capsys):
    assert "reward" not in printed(capsys, "--policy.reward", "gold")[3]
    Path("quick.yaml").write_text("pipeline: {sft: {config: sft.yaml}, policy: {config: ppo.yaml, reward: gold}}")
    assert printed(capsys)[1].endswith(START)


def test_pipeline_of_a_task_with_its_own_preferences_draws_no_pairs(capsys):
    Path("quick.yaml").write_text("pipeline: {sft: {config: sft.yaml}, reward: {config: reward.yaml}}")
    lines = printed(capsys)
    assert len(lines) == 2
    assert lines[1].endswith(START)


def test_pipeline_skips_what_is_unchanged(stages, capsys):
    assert run() == 0
    stages.names()
    capsys.readouterr()
    assert run() == 0
    assert stages.names() == []
    shown = capsys.readouterr().out
    assert [f"{name}: unchanged, skipped" in shown for name in ("sft", "pairs", "reward", "policy")] == [True] * 4


def change(what):
    if what == "config":
        Path("ppo.yaml").write_text("model: {class_path: PPO, init_args: {clip_range: 0.1}}")
    elif what == "artefact":
        Path("runs/q/reward/export/model").write_text("retrained by hand")
    elif what == "pairs":
        Path("runs/q/pairs/pairs.jsonl").write_text("edited")
    elif what == "data":
        Path("data.jsonl").write_text("new")
    elif what == "pipeline section":
        path = Path("quick.yaml")
        path.write_text(path.read_text().replace("max_epochs: 100", "max_epochs: 50"))
    elif what == "comment":
        Path("sft.yaml").write_text(f"# a comment\n{FILES['sft.yaml']}")


ALL = ["sft", "pairs", "reward", "policy"]


@pytest.mark.parametrize(
    ("what", "words", "ran", "said"),
    [
        ("argument", ["--sft.trainer.max_steps", "10"], ALL, "sft: trainer.max_steps 520 → 10: made again"),
        ("argument", ["--policy.trainer.max_epochs", "9"], ALL[3:], "policy: trainer.max_epochs 100 → 9: made again"),
        ("argument", ["--pairs.max_new_tokens", "9"], ALL[1:], "pairs: max_new_tokens not given → 9: made again"),
        ("config", [], ["policy"], "policy: ppo.yaml changed: made again"),
        ("artefact", [], ["policy"], "policy: reward/export changed: made again"),
        ("pairs", [], ["reward", "policy"], "reward: pairs/pairs.jsonl changed: made again"),
        ("data", [], ALL, "sft: data.jsonl changed: made again"),
        ("pipeline section", [], ["policy"], "policy: trainer.max_epochs 100 → 50: made again"),
        ("comment", [], [], "sft: unchanged, skipped"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_pipeline_runs_again_what_depends_on_a_change(what, words, ran, said, stages, capsys):
    if what == "data":
        Path("data.jsonl").write_text("old")
        path = Path("quick.yaml")
        path.write_text(path.read_text().replace("{class_path: Assistant}", "{init_args: {path: data.jsonl}}"))
    assert run() == 0
    stages.names()
    capsys.readouterr()
    change(what)
    assert run(*words) == 0
    assert said in capsys.readouterr().out
    assert stages.names() == ran


def test_pipeline_overwrite_makes_everything_again(stages):
    assert run() == 0
    stages.names()
    assert run("--overwrite", "--stages", "sft,pairs") == 0
    assert ["--overwrite" in command for command in stages.commands] == [True, False]


def test_pipeline_failing_stage_stops_with_its_status_and_continues_there(stages, capsys):
    stages.failing["reward"] = 2
    assert run() == 2
    assert stages.names() == ["sft", "pairs", "reward"]
    assert capsys.readouterr().err == ""
    stages.failing.clear()
    assert run() == 0
    assert stages.names() == ["reward", "policy"]


def test_pipeline_interrupted_stage_continues_without_overwrite(stages):
    stages.cut.add("policy")
    assert run() == 143
    stages.cut.clear()
    stages.names()
    assert run() == 0
    assert "--overwrite" not in stages.commands[0]
    assert stages.names() == ["policy"]


def test_pipeline_failed_replacement_is_tried_again(stages):
    """The old run is still there, finished; it must not pass for the new one."""
    assert run() == 0
    stages.failing["policy"] = 2
    stages.names()
    assert run("--policy.trainer.max_epochs", "7") == 2
    stages.failing.clear()
    stages.names()
    assert run("--policy.trainer.max_epochs", "7") == 0
    assert "--overwrite" in stages.commands[0]
    assert stages.names() == ["policy"]


def test_pipeline_killed_after_a_stage_finished_does_not_repeat_it(stages):
    assert run() == 0
    stages.names()
    note = Path("runs/q/sft/stage.json")
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "done": False, "replaces": None}))
    os.utime(note, ns=(2**62, 2**62))  # copies and clocks change times: they say nothing
    assert run() == 0
    assert stages.names() == []


@pytest.mark.parametrize("place", ["moved", "absolute"])
def test_pipeline_is_unchanged_wherever_its_runs_are(place, stages, tmp_path):
    Path("data.jsonl").write_text("read by every stage")
    assert run() == 0
    stages.names()
    folder = tmp_path / ("runs" if place == "absolute" else "elsewhere")
    Path("runs").rename(folder)
    assert run("--runs_dir", str(folder) if place == "absolute" else "elsewhere") == 0
    assert stages.names() == []
    (folder / "q/reward/export/model").write_text("retrained by hand")
    assert run("--runs_dir", str(folder)) == 0
    assert stages.names() == ["policy"]


def test_pipeline_is_made_again_by_other_code_of_the_package(stages, capsys, monkeypatch):
    monkeypatch.setattr(described, "git_commit", lambda: "one")
    assert run() == 0
    stages.names()
    monkeypatch.setattr(described, "git_commit", lambda: "two")
    capsys.readouterr()
    assert run("--stages", "sft") == 0
    assert stages.names() == ["sft"]
    assert "sft: commit of the package one → two: made again" in capsys.readouterr().out


def test_pairs_notice_by_themselves_that_the_data_changed(stages, capsys):
    Path("data.jsonl").write_text("old")
    assert run() == 0
    stages.names()
    change("data")
    capsys.readouterr()
    assert run("--stages", "pairs") == 0
    assert stages.names() == ["pairs"]
    assert "pairs: data.jsonl changed: made again" in capsys.readouterr().out


def test_pipeline_leaves_a_run_alone_that_it_did_not_make(stages, capsys):
    assert run() == 0
    Path("runs/q/sft/stage.json").unlink()
    stages.names()
    assert run() == 2
    assert "runs/q/sft holds a finished run that this command did not make" in capsys.readouterr().err
    assert run("--stages", "pairs,reward,policy") == 0
    assert stages.names() == []


def test_pipeline_stage_without_its_inputs_is_one_line(stages, capsys):
    assert run("--stages", "policy") == 2
    assert capsys.readouterr().err == (
        "error: policy needs runs/q/sft/export, which the stage sft makes; run it first\n"
    )


MISTAKES = [
    ("--stages sft,polciy", "--stages: no stage 'polciy'; expected some of sft, pairs, reward, policy"),
    ("--polcy.trainer.max_epochs 3", "unknown option --polcy.trainer.max_epochs; did you mean --policy.trainer.max_ep"),
    ("--overwrit yes", "unknown option --overwrit; did you mean --overwrite?"),
    (
        "--model.init_args.lr 3",
        "unknown option --model.init_args.lr; give it to one stage, for instance --policy.m",
    ),
    ("--policy.trainer.max_epochs", "--policy.trainer.max_epochs needs a value"),
    ("--sft.x --policy.y 1", "--sft.x needs a value"),
    ("stray", "unexpected argument 'stray'"),
    ("--seed x", "argument --seed: invalid int value: 'x'"),
    ("--name ../up", "--name '../up': expected a name"),
    ("--policy.reward silver", "pipeline.policy.reward is 'silver'; expected learned or gold"),
    ("--config none.yaml", "--config none.yaml: no such file"),
    ("--config stage.yaml", "stage.yaml: unknown stage 'sfd' in pipeline; expected one of sft, pairs, reward, policy"),
    ("--config kind.yaml", "kind.yaml: pipeline.sft is a mapping"),
    ("--config model.yaml", "model.yaml: model belongs to one stage; give it under pipeline"),
    ("--config missing.yaml", "--config nowhere.yaml: no such file"),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_pipeline_mistake_is_one_line(words, line, stages, capsys):
    Path("stage.yaml").write_text("pipeline: {sfd: {}}")
    Path("kind.yaml").write_text("pipeline: {sft: sft.yaml}")
    Path("model.yaml").write_text("model: {class_path: PPO}")
    Path("missing.yaml").write_text("pipeline: {policy: {config: nowhere.yaml}}")
    assert run(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert stages.commands == []


def test_pipeline_without_a_pipeline_section_is_one_line(capsys):
    assert main(["pipeline", "--config", "task.yaml"]) == 2
    assert "no pipeline section in task.yaml; configs/quickstart.yaml shows one" in capsys.readouterr().err


def test_pipeline_reward_and_pairs_that_nothing_makes_are_one_line(capsys):
    Path("quick.yaml").write_text("pipeline: {pairs: {count: 3}}")
    assert run() == 2
    assert "pipeline.pairs needs pipeline.sft" in capsys.readouterr().err
    Path("quick.yaml").write_text("pipeline: {policy: {config: ppo.yaml, reward: learned}}")
    assert run() == 2
    assert "there is no pipeline.reward that makes a reward model" in capsys.readouterr().err


@pytest.fixture
def waited_for(tmp_path):
    """The exit status that is reported of a stage whose process runs some code."""

    def wait(code):
        stage = described.Stage("sft", ["fit"], tmp_path, {}, tmp_path / "export")
        process = running.StageProcess(stage, {}, subprocess.Popen([sys.executable, "-c", code]))
        status = process.wait()
        note = json.loads((tmp_path / "stage.json").read_text())
        assert (note["done"], note["status"]) == (status == 0, status)
        return status

    return wait


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(2)", 2), ("import os; os.abort()", 134)])
def test_stage_gives_the_exit_status_of_a_shell(code, status, waited_for):
    assert waited_for(code) == status


def test_stage_is_handed_sigterm(waited_for):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(flush=True); time.sleep(60)"
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert waited_for(code) in (7, 143)  # 143 where Python had not started yet
