"""Code runs only where the user's own configuration names it: not from checkpoints, models, runs or data."""

import ast
import json
import shutil
import sys
from pathlib import Path

import booby_traps
import pytest
import tiny_models
import torch

import rlhf_lightning
from rlhf_lightning.__main__ import main
from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.markup import prompt_text
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.tasks.text.readers import locate
from tests.cli_runs import fit, toy

PACKAGE = Path(rlhf_lightning.__file__).parent
CODE = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForCausalLM": "evil.Model",
    "AutoModelForSequenceClassification": "evil.Model",
    "AutoTokenizer": ["evil.Words", "evil.Words"],
}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time
    monkeypatch.syspath_prepend(str(tmp_path))  # what a module there is named is imported from there


@pytest.fixture
def marker(tmp_path):
    """What a sprung trap leaves; no test may end with it there."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


@pytest.fixture
def evil(tmp_path, marker):
    """A module that anyone could import by its name."""
    yield booby_traps.write_module(tmp_path / "evil.py", marker, "Model", "Config", "Words")
    assert "evil" not in sys.modules


def refused(load):
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def with_code(folder, marker, *, known):
    """A checkpoint that names code of its own.

    Args:
        known: its architecture is also one of transformers'.
    """
    booby_traps.write_module(folder / "evil.py", marker, "Model", "Config", "Words")
    edit(folder / "config.json", auto_map=CODE, **({} if known else {"model_type": "evil"}))
    changes = {} if known else {"tokenizer_class": "Words"}
    edit(folder / "tokenizer_config.json", auto_map=CODE, **changes)
    return str(folder)


# -- code that comes with a checkpoint -----------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path):
    tiny_models.policy().save(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def reward(tmp_path):
    tiny_models.reward_model().save(tmp_path / "reward")
    return tmp_path / "reward"


def test_trap_springs_where_remote_code_is_trusted(policy, tmp_path, monkeypatch):
    """Otherwise the tests below would show nothing."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    backbone = LanguageBackbone(checkpoint=with_code(policy, tmp_path / "sprung", known=False), trust_remote_code=True)
    refused(lambda: backbone.policy(tiny_models.tokenizer))
    assert (tmp_path / "sprung").exists()


def test_code_of_a_policy_is_not_run(policy, marker, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user is not asked, either"))
    path = with_code(policy, marker, known=False)
    for load in (
        lambda: LanguageBackbone(checkpoint=path).policy(tiny_models.tokenizer),
        lambda: LanguageBackbone(checkpoint=path).classifier(tiny_models.tokenizer(), outputs=1, seed=None),
        lambda: LanguageBackbone(checkpoint=path).trunk(tiny_models.tokenizer(), seed=None),
    ):
        assert "code of its own, which is not run" in refused(load)


def test_code_of_a_reward_model_is_not_run(reward, marker, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user is not asked, either"))
    path = with_code(reward, marker, known=False)
    policy = tiny_models.policy()
    backbone = LanguageBackbone()
    for load in (
        lambda: RewardModel.from_pretrained(path),
        lambda: LearnedReward(path),
        lambda: backbone.critic(policy, init=path),
    ):
        assert "code of its own, which is not run" in refused(load)


def test_code_beside_a_known_architecture_is_passed_over(policy, reward, marker):
    loaded = LanguageBackbone(checkpoint=with_code(policy, marker, known=True)).policy(tiny_models.tokenizer)
    assert loaded.model.config.model_type == "gpt2"
    assert torch.isfinite(LearnedReward(with_code(reward, marker, known=True)).score(["the cat"], ["sees"])).all()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch sprung') }}",
        "{{ lipsum.__globals__['os'].popen('touch sprung').read() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_chat_template_reaches_nothing(attack, policy, marker):
    words = tiny_models.tokenizer(template=attack)
    assert "the chat template cannot render" in refused(lambda: prompt_text([{"role": "user", "content": "a"}], words))


# -- names of classes in files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evil.Model", "evil", "math.inf", "UserError", "dataclass", "ABC", "Combination"])
def test_combination_of_a_reward_model_is_one_of_ours(name, reward, evil):
    edit(reward / "reward_model.json", combine={"class": name})
    assert "combine" in refused(lambda: RewardModel.from_pretrained(reward))


def test_combination_of_a_reward_model_gets_its_own_arguments_only(reward, evil):
    edit(reward / "reward_model.json", combine={"class": "MeanScore", "coef": 1.0})
    assert "reward_model.json: combine" in refused(lambda: RewardModel.from_pretrained(reward))


def test_classifier_network_a_reward_model_is_one_of_ours(reward, evil):
    edit(reward / "reward_model.json", network="evil.Model")
    with pytest.raises(UserError, match=r"network is 'evil\.Model'; expected classifier or separate"):
        RewardModel.from_pretrained(reward)


def test_checkpoint_names_no_class(evil, capsys):
    """Lightning reads a model's class and arguments from a checkpoint, where it is let."""
    hyper = {"_class_path": "evil.Model", "_instantiator": "lightning.pytorch.cli.instantiate_module", "clip_range": 9}
    assert fit(*toy(epochs=2)) == 0
    content = AtomicCheckpointIO().load_checkpoint(Path("runs/toyiterations-toytask-1/checkpoints/last.ckpt"))
    content |= {"hyper_parameters": hyper, "datamodule_hyper_parameters": hyper, "hparams_name": "evil.Model"}
    content |= {"hyper_parameters_type": "evil.Model"}
    content["callbacks"]["evil.Model"] = {"x": 1}
    AtomicCheckpointIO().save_checkpoint(content, Path("a.ckpt"))
    assert fit(*toy(epochs=3), "--ckpt_path", "a.ckpt", "--name", "again") == 0
    assert Path("runs/again/export/weight.txt").read_text() == "6.0"  # 1 + 2 + 3


def test_files_of_a_run_name_no_class(evil, monkeypatch, capsys):
    """What stands in a run directory is compared and shown, and never built."""
    monkeypatch.setenv("TOY_FAIL", "interrupt:4")
    assert fit(*toy()) == 130
    monkeypatch.delenv("TOY_FAIL")
    run = Path("runs/toyiterations-toytask-1")
    named = {"class_path": "evil.Model", "init_args": {"x": {"class_path": "evil.Config"}}}
    (run / "config.yaml").write_text(json.dumps({key: named for key in ("task", "model", "data", "backbone")}))
    (run / "evaluation.json").write_text(json.dumps({"class_path": "evil.Model"}))
    capsys.readouterr()
    environment = {"command": "evil", "versions": named, "wandb_run": named}
    (run / "environment.json").write_text(json.dumps(environment))
    assert fit(*toy()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: runs/toyiterations-toytask-1 holds an unfinished run with another configuration")
    assert error.count("\n") == 1
    assert main(["report", str(run)]) == 0
    assert main(["generate", str(run), "the cat"]) == 2
    assert main(["score", "nope.jsonl", "--reward", str(run)]) == 2


def test_python_objects_in_yaml_are_not_built(marker, capsys):
    Path("a.yaml").write_text("trainer: !!python/object/apply:builtins.open ['sprung', 'w']\n")
    for command in ("fit", "pipeline", "pairs"):
        assert main([command, "--config", "a.yaml"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    run = Path("runs/a")
    run.mkdir(parents=True)
    shutil.copy("a.yaml", run / "config.yaml")
    assert main(["report", str(run)]) == 2


def test_script_of_a_dataset_is_not_run(marker, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("mine.py", "dataset.py", "__init__.py"):
        booby_traps.write_module(tmp_path / "mine" / name, marker)
    (tmp_path / "mine" / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert str(tmp_path / "mine") in refused(lambda: list(locate(str(tmp_path / "mine")).records()))


# -- the package itself --------------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load", "shelve.open",
    "marshal.loads", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "runpy.run_path", "runpy.run_module",
}  # fmt: skip


def calls(path):
    """Every call of a file: its dotted name, and the arguments given by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}, node


def offences(path):
    for name, given, node in calls(path):
        where = f"{path.name}:{node.lineno} {name}"
        if name in FORBIDDEN:
            yield where
        if "shell" in given and not (isinstance(given["shell"], ast.Constant) and given["shell"].value is False):
            yield f"{where} shell"
        if name == "torch.load" and ast.unparse(given.get("weights_only", ast.Constant(None))) != "True":
            yield f"{where} without weights_only"
        if name in ("yaml.load", "yaml.load_all") and not _safe_loader(path, node, given):
            yield f"{where} with an unsafe loader"
        if name in ("np.load", "numpy.load") and "allow_pickle" in given:
            yield f"{where} allow_pickle"
        if ast.unparse(given.get("trust_remote_code", ast.Constant(False))) == "True":
            yield f"{where} trust_remote_code"


def _safe_loader(path, node, given):
    loader = ast.unparse(given.get("Loader", node.args[-1]))
    if loader.endswith("SafeLoader"):
        return True
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    return bases.get(loader) == ["yaml.SafeLoader"]


def test_package_calls_nothing_that_unpickles_or_runs_text():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert [offence for path in files for offence in offences(path)] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("os.system('ls')", 1),
        ("subprocess.run('ls', shell=True)", 1),
        ("subprocess.run('ls', shell=wanted)", 1),
        ("subprocess.run(['ls'], shell=False)", 0),
        ("torch.load('x')", 1),
        ("torch.load('x', weights_only=False)", 1),
        ("torch.load('x', weights_only=True)", 0),
        ("yaml.load('x', yaml.Loader)", 1),
        ("yaml.load('x', Loader=yaml.SafeLoader)", 0),
        ("yaml.safe_load('x')", 0),
        ("class Own(yaml.SafeLoader): ...\nyaml.load('x', Own)", 0),
        ("class Own(yaml.Loader): ...\nyaml.load('x', Own)", 1),
        ("eval('1')", 1),
        ("model.eval()", 0),
        ("A.from_pretrained('x', trust_remote_code=True)", 1),
        ("pickle.loads(b'')", 1),
    ],
)
def test_offence_is_found(text, count, tmp_path):
    (tmp_path / "a.py").write_text(text)
    assert len(list(offences(tmp_path / "a.py"))) == count
