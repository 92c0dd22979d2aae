"""A booby-trapped pickle, wherever a file is read: nothing in it is ever carried out, and the user reads one line."""

import json
import pickle
import shutil
from pathlib import Path

import booby_traps
import pytest
import tiny_models
import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.tasks.text.readers import locate
from tests.cli_runs import fit, toy

KINDS = ("pickle", "torch", "torch before 1.6")
RUN = Path("runs/toyiterations-toytask-1")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time


@pytest.fixture
def marker(tmp_path):
    """What a sprung trap leaves; no test may end with it there."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A policy and reward models as runs export them."""
    root = tmp_path_factory.mktemp("exports")
    tiny_models.policy().save(root / "policy")
    tiny_models.reward_model().save(root / "reward")
    members = [tiny_models.reward_model(seed=seed).members[0] for seed in range(2)]
    RewardModel(members).save(root / "ensemble")
    return root


@pytest.fixture
def copy(exports, tmp_path):
    return lambda name: shutil.copytree(exports / name, tmp_path / name)


def line(capsys):
    """The one line of an error."""
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def refused(load):
    """The one line in which loading ended."""
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_trap_springs_where_it_is_unpickled(kind, tmp_path):
    """Otherwise the tests below would show nothing."""
    path = booby_traps.write_pickle(tmp_path / "trap", tmp_path / "sprung", kind)
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").exists()


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [(), ("--weights_only", "false")], ids=["by default", "weights_only false"])
def test_checkpoint_is_not_unpickled(kind, words, marker, capsys):
    booby_traps.write_pickle(Path("trap.ckpt"), marker, kind)
    assert fit(*toy(epochs=1), "--ckpt_path", "trap.ckpt", *words) == 2
    assert "checkpoint trap.ckpt" in line(capsys)
    assert not RUN.exists()


def test_evaluated_checkpoint_is_not_unpickled(marker, capsys):
    booby_traps.write_pickle(Path("trap.ckpt"), marker, "torch")
    words = ["--ckpt_path", "trap.ckpt", "--weights_only", "false"]
    assert main(["validate", *toy("ToySteps")[1:-2], *words]) == 2
    assert "checkpoint trap.ckpt" in line(capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_an_interrupted_run_is_not_unpickled(kind, marker, capsys, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "interrupt:4")
    assert fit(*toy()) == 130
    monkeypatch.delenv("TOY_FAIL")
    checkpoints = sorted((RUN / "checkpoints").glob("last*.ckpt"))
    assert checkpoints
    for path in checkpoints:
        booby_traps.write_pickle(path, marker, kind)
    capsys.readouterr()
    assert fit(*toy()) == 2
    assert "last.ckpt" in line(capsys)


# -- models --------------------------------------------------------------------------------------------------------


def pickled(folder, marker, kind, name="pytorch_model.bin"):
    """The model's weights replaced by a trap."""
    (folder / "model.safetensors").unlink()
    booby_traps.write_pickle(folder / name, marker, kind)
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_policy_is_not_unpickled(kind, copy, marker):
    path = pickled(copy("policy"), marker, kind)
    assert "pytorch_model.bin" in refused(lambda: LanguageBackbone(checkpoint=path).policy(tiny_models.tokenizer))


@pytest.mark.parametrize("load", [RewardModel.from_pretrained, LearnedReward], ids=["model", "reward"])
@pytest.mark.parametrize("kind", KINDS)
def test_reward_model_is_not_unpickled(kind, load, copy, marker):
    path = pickled(copy("reward"), marker, kind)
    assert "pytorch_model.bin" in refused(lambda: load(path))


def test_member_of_an_ensemble_is_not_unpickled(copy, marker):
    folder = copy("ensemble")
    pickled(folder / "member_1", marker, "torch")
    assert "pytorch_model.bin" in refused(lambda: RewardModel.from_pretrained(folder))


def test_start_of_a_critic_is_not_unpickled(copy, marker):
    path = pickled(copy("reward"), marker, "torch")
    backbone = LanguageBackbone(checkpoint=str(copy("policy")))
    policy = backbone.policy(tiny_models.tokenizer)
    assert "pytorch_model.bin" in refused(lambda: backbone.critic(policy, init=path))


def test_trunk_of_a_reward_model_is_not_unpickled(copy, marker):
    path = pickled(copy("policy"), marker, "torch")
    words = tiny_models.tokenizer()
    backbone = LanguageBackbone(checkpoint=path)
    assert "pytorch_model.bin" in refused(lambda: backbone.classifier(words, outputs=1, seed=None))
    assert "pytorch_model.bin" in refused(lambda: backbone.trunk(words, seed=None))


def test_shards_are_not_unpickled(copy, marker):
    folder = copy("policy")
    (folder / "model.safetensors").unlink()
    booby_traps.write_pickle(folder / "pytorch_model-00001-of-00001.bin", marker, "torch")
    names = {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    backbone = LanguageBackbone(checkpoint=str(folder))
    assert "pytorch_model-00001" in refused(lambda: backbone.policy(tiny_models.tokenizer))


def test_pickle_named_safetensors_is_not_unpickled(copy, marker):
    folder = copy("policy")
    booby_traps.write_pickle(folder / "model.safetensors", marker, "torch")
    assert "cannot be loaded" in refused(lambda: LanguageBackbone(checkpoint=str(folder)).policy(tiny_models.tokenizer))


@pytest.mark.parametrize("beside", [True, False], ids=["beside its base", "alone"])
def test_adapter_is_not_unpickled(beside, copy, tmp_path, marker):
    backbone = LanguageBackbone(checkpoint=str(copy("policy")), lora=LoRA(rank=2))
    backbone.policy(tiny_models.tokenizer).save(tmp_path / "tuned")
    folder = tmp_path / "tuned" / "adapter"
    settings = json.loads((folder / "adapter_config.json").read_text())
    base = str(tmp_path / "policy")
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").unlink()
    booby_traps.write_pickle(folder / "adapter_model.bin", marker, "torch")
    if beside:
        for file in (tmp_path / "policy").iterdir():
            shutil.copy(file, folder)
    refused(lambda: LanguageBackbone(checkpoint=str(folder)).policy(tiny_models.tokenizer))


def test_generate_and_score_unpickle_nothing(copy, marker, capsys):
    policy, reward = (pickled(copy(name), marker, "torch") for name in ("policy", "reward"))
    assert main(["generate", policy, "the cat"]) == 2
    assert "pytorch_model.bin" in line(capsys)
    Path("answers.jsonl").write_text('{"prompt": "the cat", "response": "sees"}\n')
    assert main(["score", "answers.jsonl", "--reward", reward]) == 2
    assert "pytorch_model.bin" in line(capsys)


# -- data ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["pairs.pkl", "pairs.pt", "pairs.npy", "pairs.jsonl", "pairs.parquet", "pairs"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_data_file_is_not_unpickled(name, kind, tmp_path, marker):
    path = booby_traps.write_pickle(tmp_path / name, marker, kind)
    assert str(path) in refused(lambda: list(locate(str(path)).records()))


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("others", [{}, {"train.jsonl": '{"prompt": "a", "response": "b"}\n'}], ids=["alone", "beside"])
def test_data_folder_is_not_unpickled(others, tmp_path, marker):
    folder = tmp_path / "mine"
    for name in ("a.pkl", "b.pkl", "c.pickle"):
        booby_traps.write_pickle(folder / name, marker)
    for name, text in others.items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.pkl'\n---\n")
    assert str(folder) in refused(lambda: list(locate(str(folder)).records()))


@pytest.mark.usefixtures("_own_cache")
def test_shards_of_webdataset_are_not_unpickled(tmp_path, marker):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("0.tar", "1.tar"):
        booby_traps.write_tar(folder / name, marker)
    (folder / "empty.csv").write_text("")
    refused(lambda: list(locate(str(folder)).records()))


def test_saved_dataset_is_not_unpickled(tmp_path, marker):
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"prompt": "a", "response": "b"}]).save_to_disk(str(folder))
    for file in folder.glob("*.arrow"):
        booby_traps.write_pickle(file, marker)
    assert str(folder) in refused(lambda: list(locate(str(folder)).records()))


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "arrow.other"])
def test_extension_type_of_parquet_is_not_unpickled(name, tmp_path, marker):
    """Arrow once unpickled the description of such a column (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    description = pickle.dumps(booby_traps.Trap(marker))
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": description}
    schema = pa.schema([pa.field("prompt", pa.string(), metadata=metadata), pa.field("response", pa.binary())])
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table([["the cat"], [description]], schema=schema), path)
    records = [record for _, record in locate(str(path)).records()]
    assert records == [{"prompt": "the cat", "response": description}]


def test_data_of_a_run_are_not_unpickled(marker, capsys):
    booby_traps.write_pickle(Path("pairs.pkl"), marker)
    words = ["--config", "configs/tasks/assistant.yaml", "--config", "configs/algorithms/reward.yaml"]
    assert main(["fit", *words, "--data.init_args.pairs", "pairs.pkl"]) == 2
    assert "pairs.pkl" in line(capsys)
