"""Mistakes in arguments and configurations: one line that names the key and what was expected, exit status 2."""

from pathlib import Path

import pytest

from rlhf_lightning.cli.messages import explain
from tests.cli_runs import FAKES, fit, toy

FILES = {
    "syntax.yaml": "trainer:\n  max_epochs: 3\n model: {class_path: PPO\n",
    "tab.yaml": "\ttrainer: 3\n",
    "list.yaml": "- 1\n",
    "twice.yaml": "trainer: {max_epochs: 3}\ntrainer: {devices: 1}\n",
    "key.yaml": "trainer: {max_epoch: 3}\n",
    "top.yaml": "trainr: {max_epochs: 3}\n",
    "type.yaml": "trainer: {accelerator: cpu, max_epochs: 2}\ndata: {init_args: {length: many}}\n",
    "two.yaml": "trainer: {max_epoch: 3}\ndata: {init_args: {length: many, sizes: 3}}\n",
    "model.yaml": f"model: {{class_path: {FAKES}.ToyIterations, init_args: {{clip_rang: 0.2}}}}\n",
}


@pytest.fixture(autouse=True)
def _with_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time
    for name, text in FILES.items():
        Path(name).write_text(text)


CASES = [
    # keys
    ("--trainer.max_epoch=3", "unknown key --trainer.max_epoch; did you mean --trainer.max_epochs?"),
    ("--trainer.max_epoc 3", "unknown key --trainer.max_epoc; did you mean --trainer.max_epochs?"),
    ("--print_confg", "unknown key --print_confg; did you mean --print_config?"),
    ("--foo 3", "unknown key --foo"),
    ("--name a stray", "unexpected argument 'stray'; every setting is an option: --KEY VALUE"),
    (
        "--model.init_args.clip_rang 3",
        "unknown key model.init_args.clip_rang: ToyIterations has no such argument; did you mean clip_range?",
    ),
    (
        "--model.optimization.lrr 1",
        "unknown key model.init_args.optimization.init_args.lrr: Options has no such argument; did you mean lr?",
    ),
    ("--model.init_args.task 3", "model.init_args.task is filled in from --task; leave it out"),
    # values
    ("--trainer.max_epochs three", "trainer.max_epochs: expected int or null, got 'three'"),
    ("--trainer.max_epochs 1.5", "trainer.max_epochs: expected int or null, got '1.5'"),
    ("--trainer.max_steps x", "trainer.max_steps: expected int, got 'x'"),
    ("--trainer.enable_progress_bar x", "trainer.enable_progress_bar: expected true or false or null, got 'x'"),
    ("--model.clip_range abc", "model.init_args.clip_range: expected float, got 'abc'"),
    ("--model.clip_range [1,2]", "model.init_args.clip_range: expected float, got '[1, 2]'"),
    ("--data.sizes 3", "data.init_args.sizes: expected list[int] or null, got '3'"),
    ("--data.sizes [a]", "data.init_args.sizes: expected list[int] or null, got \"['a']\""),
    ("--model.optimization.lr x", "model.init_args.optimization.init_args.lr: expected float, got 'x'"),
    ("--data.length", "--data needs a value"),
    ("--config", "--config needs a value"),
    ("--overwrite maybe", "overwrite: expected true or false, got 'maybe'"),
    ("--checkpoint_every 0", "checkpoint_every is 0; expected at least 1"),
    ("--seed_everything -3", "seed_everything: -3 is not in bounds"),
    ("--name ../x", "--name '../x': expected a name such as ppo-1"),
    # classes
    ("--model PP0", "model: no class 'PP0'; did you mean PPO?"),
    ("--model Nothing", "model: no class 'Nothing'; expected one of A2C, CPI, DPO, GRPO,"),
    (f"--model {FAKES}.ToyIteration", f"model: no class ToyIteration in {FAKES}; did you mean ToyIterations?"),
    ("--model nomodule.X", "model: nomodule.X cannot be imported (no module named 'nomodule')"),
    (f"--model {FAKES}.ToyTask", "model: ToyTask is not a LightningModule"),
    ("--task Assistan", "task: no class 'Assistan'; did you mean Assistant?"),
    ("--backbone LanguageBackbon", "backbone: no class 'LanguageBackbon'; did you mean LanguageBackbone?"),
    ("--model.optimization Optionz", "model.init_args.optimization: no class 'Optionz'; did you mean Options?"),
    ("--trainer.callbacks EarlyStop", "trainer.callbacks: no class 'EarlyStop'; did you mean EarlyStopping?"),
    ("--trainer.callbacks+=EarlyStopping", "trainer.callbacks: EarlyStopping needs monitor"),
    ("--trainer.logger WandbLoger", "trainer.logger: no class 'WandbLoger'; did you mean WandbLogger?"),
    # files
    ("--config nope.yaml", "--config nope.yaml: no such file; did you mean top.yaml"),
    ("--config configs/algorithms/pp.yaml", "--config configs/algorithms/pp.yaml: no such file; did you mean"),
    ("--config .", "--config . is a directory; expected a YAML file such as"),
    ("--config syntax.yaml", "syntax.yaml, line 3, column 2: expected <block end>"),
    ("--config tab.yaml", "tab.yaml, line 1, column 1: found character '\\t' that cannot start any token"),
    ("--config list.yaml", "list.yaml: expected a mapping of keys to values, found list"),
    ("--config twice.yaml", "twice.yaml, line 2, column 1: key 'trainer' is given twice"),
    ("--config key.yaml", "unknown key trainer.max_epoch (in key.yaml); did you mean trainer.max_epochs?"),
    ("--config top.yaml", "unknown key trainr.max_epochs (in top.yaml); did you mean trainer.max_epochs?"),
    ("--config type.yaml", "data.init_args.length: expected int, got 'many' (in type.yaml)"),
    ("--config model.yaml", "unknown key model.init_args.clip_rang (in model.yaml): ToyIterations has no such"),
    ("--ckpt_path nope.ckpt", "checkpoint nope.ckpt does not exist"),
    ("--ckpt_path key.yaml", "checkpoint key.yaml"),
    # combinations
    ("--trainer.max_epochs null", "how long ToyIterations trains is not set; give trainer.max_epochs or"),
    ("--trainer.limit_train_batches 0", "there was nothing to train"),
    ("--trainer.default_root_dir x", "trainer.default_root_dir has no effect here; give --runs_dir and --name"),
    ("--trainer.accelerator gpuu", "trainer: You selected an invalid accelerator name: `accelerator='gpuu'`"),
    ("--trainer.devices x", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
    ("--trainer.strategy dpp", "trainer: You selected an invalid strategy name: `strategy='dpp'`"),
    ("--model.clip_range -1", "model.init_args.clip_range must be above 0, got -1.0"),
]


@pytest.mark.parametrize(("words", "line"), CASES, ids=[words for words, _ in CASES])
def test_fit_mistake_is_one_line(words, line, capsys):
    assert fit(*toy(epochs=1), *words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_fit_says_what_is_missing(capsys):
    assert fit("fit") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: missing: a task (--config configs/tasks/….yaml), a backbone")
    assert "a model (--config configs/algorithms/….yaml), a data module" in error


SEVERAL = [
    (
        "--model.clip_rang 1 --trainer.max_epoch 3",
        [
            "unknown key model.init_args.clip_rang: ToyIterations has no such argument; did you mean clip_range?",
            "unknown key --trainer.max_epoch; did you mean --trainer.max_epochs?",
        ],
    ),
    (
        "--config two.yaml --trainer.devics 2",
        [
            "unknown key trainer.max_epoch (in two.yaml); did you mean trainer.max_epochs?",
            "data.init_args.length: expected int, got 'many' (in two.yaml)",
            "data.init_args.sizes: expected list[int] or null, got '3' (in two.yaml)",
            "unknown key --trainer.devics; did you mean --trainer.devices?",
        ],
    ),
    (
        "--model.optimization.lr x --model.optimization.betaz [1,2] --foo 3",
        [
            "model.init_args.optimization.init_args.lr: expected float, got 'x'",
            "unknown key model.init_args.optimization.init_args.betaz: Options has no such argument; did you mean",
            "unknown key --foo",
        ],
    ),
    # what stands below a class that does not exist is not judged
    ("--model PP0 --model.lam 3 --foo 3", ["model: no class 'PP0'; did you mean PPO?", "unknown key --foo"]),
    (
        "--config syntax.yaml --config list.yaml",
        ["syntax.yaml, line 3, column 2:", "list.yaml: expected a mapping of keys to values, found list"],
    ),
    (
        "--trainer.default_root_dir x --trainer.max_epochs null",
        ["trainer.default_root_dir has no effect here", "how long ToyIterations trains is not set"],
    ),
]


@pytest.mark.parametrize(("words", "lines"), SEVERAL, ids=[words for words, _ in SEVERAL])
def test_fit_names_all_mistakes_in_one_line(words, lines, capsys):
    assert fit(*toy(epochs=1), *words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for line in lines:
        assert error.count(line) == 1
    assert error.count("unknown key") == sum(line.startswith("unknown key") for line in lines)


PPO = ["--config", "configs/tasks/assistant.yaml", "--config", "configs/algorithms/ppo.yaml"]
SFT = ["--config", "configs/tasks/assistant.yaml", "--config", "configs/algorithms/sft.yaml"]
DPO = ["--config", "configs/tasks/assistant.yaml", "--config", "configs/algorithms/dpo.yaml"]
SHIPPED = [
    (PPO, "--model.kl AdaptivKLControl", "model.init_args.kl: no class 'AdaptivKLControl'; did you mean Adaptive"),
    (
        PPO,
        "--model.gamma 2 --data.rollout_batch_size 0",
        "data.init_args.rollout_batch_size must be at least 1, got 0; model.init_args.gamma must be between",
    ),
    (PPO, "--data.reward LearnedReward", "data.init_args.reward: LearnedReward needs path"),
    (PPO, "--data.reward LearnedReward --data.reward.path nope", "reward model nope does not exist"),
    (PPO, "--trainer.max_steps 3", "trainer.max_steps would stop PPO in the middle of an iteration"),
    (PPO, "--trainer.gradient_clip_val 1", "trainer.gradient_clip_val has no effect here; give model.init_args.opt"),
    (PPO, "--trainer.accumulate_grad_batches 2", "trainer.accumulate_grad_batches has no effect here; give"),
    (PPO, "--backbone.checkpoint runs/none/export", "checkpoint runs/none/export does not exist; the supervised stage"),
    (SFT, "--trainer.max_steps -1", "how long SFT trains is not set; give trainer.max_steps (optimizer steps)"),
    (SFT, "--model.optimization.lrr 1", "unknown key model.init_args.optimization.lrr: SFT has no such argument; did"),
    (SFT, "--model.optimization.schedule cos", "model.init_args.optimization.schedule: expected constant_with_warmup"),
    (
        DPO,
        "--data.path x",
        "unknown key data.init_args.path: PreferenceDataModule has no such argument; it takes pairs,",
    ),
    (SFT, "--model.optimization 3", "model.init_args.optimization: expected a mapping of its arguments, got '3'"),
]


@pytest.mark.parametrize(("configs", "words", "line"), SHIPPED, ids=[words for _, words, _ in SHIPPED])
def test_fit_mistake_in_shipped_configurations_is_one_line(configs, words, line, capsys):
    """In a folder without ``configs/``: the package's own are found anyway."""
    assert fit("fit", *configs, *words.split(), "--trainer.accelerator", "cpu") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_one_line_gives_an_unforeseen_message_whole():
    assert explain("something\n  quite new").line == "something quite new"
