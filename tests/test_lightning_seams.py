"""What this package relies on of Lightning's and argparse's private interfaces.

A test that fails with a new version of Lightning shows which function of ``rlhf_lightning/lightning_seams.py`` to
adapt: its docstring says what it relies on. Nothing else in the package touches private interfaces.
"""

import argparse
import ast
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

import rlhf_lightning
from rlhf_lightning import lightning_seams as seams
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.onednn import packed, packed_linear
from tests.cli_runs import fit, toy

PACKAGE = Path(rlhf_lightning.__file__).parent
SEAMS = PACKAGE / "lightning_seams.py"
ONEDNN = PACKAGE / "models" / "language" / "onednn.py"
PACKING = PACKAGE / "models" / "language" / "packing.py"
"""Of transformers; tests/models/language/test_models_packing.py pins it."""


def adapt(function):
    return f"Lightning has changed: adapt `{function.__name__}` in {SEAMS.name} to the new version"


class Descent(LightningModule):
    """Takes steps of plain gradient descent, by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=1.0)

    def training_step(self, batch, batch_idx):
        self.weight.grad = torch.ones_like(self.weight)
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        pass


def trainer(*callbacks, **options):
    settings = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(callbacks=list(callbacks), **{**settings, **options})


def loader(count=5):
    return DataLoader(range(count), batch_size=None)


def test_has_trainer():
    module = Descent()
    assert not seams.has_trainer(module), adapt(seams.has_trainer)
    trainer().fit(module, loader())
    assert seams.has_trainer(module), adapt(seams.has_trainer)


def test_callbacks_of_gives_all_in_their_order():
    first, second = Callback(), Callback()
    given = [callback for callback in seams.callbacks_of(trainer(first, second)) if callback in (first, second)]
    assert given == [first, second], adapt(seams.callbacks_of)


@pytest.mark.parametrize("batches", [False, 1])
def test_is_dry_run(batches):
    assert seams.is_dry_run(trainer(fast_dev_run=batches)) == bool(batches), adapt(seams.is_dry_run)


def test_attach_data():
    own, data = trainer(), LightningDataModule()
    seams.attach_data(own, data)
    assert own.datamodule is data, adapt(seams.attach_data)


def test_keep_loaders_whole():
    ddp = trainer(strategy="ddp", devices=2)
    assert ddp._data_connector._requires_distributed_sampler(loader()), adapt(seams.keep_loaders_whole)
    seams.keep_loaders_whole(ddp)
    assert not ddp._data_connector._requires_distributed_sampler(loader()), adapt(seams.keep_loaders_whole)


@pytest.mark.parametrize("options", [{"val_check_interval": 2}, {"max_steps": 3, "val_check_interval": 3}, {}])
def test_validation_follows(options):
    events = []

    class Expects(Callback):
        def on_train_batch_end(self, trainer, *_):
            events.append(seams.validation_follows(trainer))

        def on_validation_start(self, *_):
            events.append("validation")

    trainer(Expects(), **options).fit(Descent(), loader(), loader(1))
    expected = [event for event in events if event != "validation"]
    followed = [
        after == "validation" for event, after in zip(events, [*events[1:], None], strict=True) if event != "validation"
    ]
    assert any(expected), adapt(seams.validation_follows)
    assert expected == followed, adapt(seams.validation_follows)


def test_process_rank(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert seams.process_rank() == 0
    monkeypatch.delattr(rank_zero_only, "rank")
    monkeypatch.setenv("RANK", "3")
    importlib.reload(importlib.import_module("lightning.fabric.utilities.rank_zero"))
    assert seams.process_rank() == 3, adapt(seams.process_rank)


def test_launched_processes():
    assert seams.launched_processes(trainer()) == []
    ddp = trainer(strategy="ddp", devices=2)
    ddp.strategy._configure_launcher()
    ddp.strategy.launcher.procs.append("a process")
    assert seams.launched_processes(ddp) == ["a process"], adapt(seams.launched_processes)


@pytest.mark.parametrize("told", [False, True])
def test_listen_for_sigterm_and_set_received_sigterm(told):
    heard = []

    class Listens(Callback):
        def setup(self, trainer, pl_module, stage):
            seams.listen_for_sigterm(trainer, lambda: heard.append(trainer.global_step))

        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                seams.set_received_sigterm(trainer, told)

    run, module = trainer(Listens()), Descent()
    if told:
        with pytest.raises(SIGTERMException):
            run.fit(module, loader())
    else:
        run.fit(module, loader())
    assert heard == [2], adapt(seams.listen_for_sigterm)
    assert module.weight.item() == (-3 if told else -5), adapt(seams.set_received_sigterm)


@pytest.mark.parametrize("fault", ["no such choice", "weights", "optimizer"])
def test_translate_restore_errors(fault, tmp_path):
    run = trainer()
    run.fit(Descent(), loader())
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["state_dict" if fault == "weights" else "optimizer_states"]
    torch.save(content, path)
    again = trainer(max_epochs=2)
    seams.translate_restore_errors(again, lambda error: UserError(f"translated {type(error).__name__}"))
    with pytest.raises(UserError, match="translated"):
        again.fit(Descent(), loader(), ckpt_path="best" if fault == "no such choice" else path)


def test_translate_restore_errors_leaves_errors_of_training_alone():
    class Fails(Descent):
        def training_step(self, batch, batch_idx):
            raise KeyError("a bug")

    run = trainer()
    seams.translate_restore_errors(run, lambda error: UserError("translated"))
    with pytest.raises(KeyError):
        run.fit(Fails(), loader())


def test_option_names():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer.max_epochs")
    assert "trainer.max_epochs" in seams.option_names(parser), adapt(seams.option_names)


def test_one_config_cli_takes_no_settings_from_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(*toy(epochs=1), "--name", "first") == 0
    content = torch.load("runs/first/checkpoints/last.ckpt", weights_only=True)
    torch.save(content | {"hyper_parameters": {"clip_range": 0.5}}, "other.ckpt")
    assert fit(*toy(epochs=2), "--name", "second", "--ckpt_path", "other.ckpt") == 0
    settings = yaml.safe_load(Path("runs/second/config.yaml").read_text())
    assert settings["model"]["init_args"]["clip_range"] == 0.2, adapt(seams.OneConfigCLI)


def test_one_config_cli_refuses_a_bad_seed_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fit(*toy(epochs=1), "--seed_everything", "-3") == 2
    assert capsys.readouterr().err.startswith("error: seed_everything: -3"), adapt(seams.OneConfigCLI)


# -- nothing else touches private interfaces -----------------------------------------------------------------------

LIBRARIES = ("lightning", "jsonargparse", "lightning_utilities")


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names():
    """Private attributes and methods of the classes that ours derive from."""
    objects = [LightningModule(), LightningDataModule(), Callback(), trainer(), LightningCLI, LightningArgumentParser()]
    return {name for one in objects for name in dir(one) if is_private(name)}


def private_uses(source, inherited):
    """Private names of other objects, or of a class's foreign parents, that a module uses."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    own |= {call.args[1].value for call in calls if getattr(call.func, "attr", "") == "__setattr__"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            by_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            by_parent = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if node.attr in inherited or not (by_itself or by_parent or node.attr in own):
                yield node.attr
        elif isinstance(node, ast.ClassDef):
            methods = (child.name for child in node.body if isinstance(child, ast.FunctionDef))
            yield from (name for name in methods if node.bases and is_private(name) and name in inherited)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if is_private(part))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            names = [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
            yield from (name for name in names if is_private(name))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("trainer._signal_connector.received_sigterm = True", ["_signal_connector"]),
        ("class A(LightningModule):\n  def f(self): return self._trainer", ["_trainer"]),
        ("class A(LightningCLI):\n  def _set_seed(self): super()._set_seed()", ["_set_seed", "_set_seed"]),
        ("from jsonargparse._actions import ActionConfigFile", ["_actions"]),
        ("from lightning.fabric.utilities.rank_zero import _get_rank", ["_get_rank"]),
        ("setattr(loop, '_results', 1)", ["_results"]),
        ("class A:\n  def __init__(self): self._own = 1\n  def same(self, other): return self._own == other._own", []),
        ("from rlhf_lightning.a import _b", []),
    ],
)
def test_private_uses(source, found):
    assert list(private_uses(source, private_names())) == found


def test_package_uses_private_interfaces_in_the_seams_only():
    inherited = private_names()
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path not in (SEAMS, ONEDNN, PACKING)
        for name in private_uses(path.read_text(encoding="utf-8"), inherited)
    }
    assert not found, f"give each a function in {SEAMS.name}, with a test here that pins it"
    assert set(private_uses(SEAMS.read_text(encoding="utf-8"), inherited)) >= {"_signal_connector", "_trainer"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_weights_multiply_as_others_do(dtype, biased):
    inputs, weight = torch.randn(5, 12).to(dtype), torch.randn(7, 12).to(dtype)
    bias = torch.randn(7).to(dtype) if biased else None
    weight_packed = packed(weight)
    assert weight_packed is not None
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(
        packed_linear(inputs, weight_packed, bias),
        torch.nn.functional.linear(inputs, weight, bias),
        rtol=0,
        atol=tolerance,
    )
    assert packed(weight.double()) is None


def test_a_process_ends_with_its_status_after_what_is_to_be_done_at_its_exit():
    program = (
        "import atexit; from rlhf_lightning.lightning_seams import end_process; "
        "atexit.register(print, 'done at exit'); end_process(7); print('never')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (7, "done at exit\n")
