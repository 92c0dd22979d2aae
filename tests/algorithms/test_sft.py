"""Supervised fine-tuning: its loss, its schedule, its held-out numbers and its checkpoints."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from training_helpers import AtHook, Letters, OneToken, fit, quiet_trainer, same, snapshot, tiny

from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Demonstration


def sft(task, **settings):
    return SFT(task, tiny(), **{"optimization": Optimization(1e-2), "log_every": 1, **settings})


def demonstrations(task, batch_size=4, **settings):
    return DemonstrationDataModule(task, batch_size, **settings)


def by_hand(module, examples):
    """Nats and tokens of the responses, one at a time."""
    nats, tokens = 0.0, 0
    words = module.policy.tokenizer
    for example in examples:
        prompt, response = words(example.prompt)["input_ids"], [*words(example.response)["input_ids"], 0]
        logits = module.policy.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        nats = nats - logits.log_softmax(-1)[range(len(response)), response].sum()
        tokens += len(response)
    return nats, tokens


def test_sft_gradient_is_that_of_the_mean_over_response_tokens():
    task, checked = Letters(), []

    def compare(trainer, module):
        examples = trainer.datamodule.train_batch(trainer.global_step)
        gradients = [p.grad.clone() for p in module.policy.parameters()]
        with torch.enable_grad():
            nats, tokens = by_hand(module, examples)
            expected = torch.autograd.grad(nats / tokens, list(module.policy.parameters()))
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-8, atol=1e-12)
        checked.append((nats / tokens).item())

    module = sft(task, optimization=Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3))
    callback = AtHook("on_before_optimizer_step", compare)
    rows = fit(module, demonstrations(task), callback, max_steps=3, limit_val_batches=0, precision="64-true").rows
    assert [row["sft/loss"] for row in rows] == pytest.approx(checked)
    assert [row["sft/perplexity"] for row in rows] == pytest.approx([math.exp(loss) for loss in checked], rel=1e-6)


def test_heldout_loss_is_the_mean_over_all_heldout_tokens():
    task = Letters(heldout=7)
    module, data = sft(task), demonstrations(task)
    rows = fit(module, data, max_steps=2).untimed()
    with torch.no_grad():
        nats, tokens = by_hand(module, task.demonstrations("heldout"))
    assert set(rows[-1]) == {"step", "eval/loss", "eval/perplexity"}
    assert rows[-1]["eval/loss"] == pytest.approx((nats / tokens).item(), rel=1e-5)
    assert rows[-1]["step"] == 2


class KnownEntropy(Letters):
    """Ten nats a demonstration."""

    def demonstration_entropy(self, demonstrations):
        return 10.0 * len(demonstrations)


def test_heldout_entropy_is_that_of_the_demonstrations_that_were_looked_at():
    task = KnownEntropy(heldout=7)
    for batches, seen in ((1, 4), (1.0, 7)):
        module = sft(task)
        row = fit(module, demonstrations(task), max_steps=1, limit_val_batches=batches).rows[-1]
        tokens = by_hand(module, task.demonstrations("heldout")[:seen])[1]
        assert row["eval/entropy"] == pytest.approx(10 * seen / tokens)
        assert row["eval/nats_above_entropy"] == pytest.approx(row["eval/loss"] - row["eval/entropy"])


def test_sft_learns():
    task = Letters(demonstrations=8)
    rows = fit(sft(task), demonstrations(task, 8), max_steps=60).rows
    assert rows[-2]["sft/loss"] < 0.5 * rows[0]["sft/loss"]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # up from 0 in half of 4 steps; then down to 0, which comes after the last
        ("linear", [0, 0.05, 0.1, 0.05]),
        ("cosine", [0, 0.05, 0.1, 0.05]),
        ("constant_with_warmup", [0, 0.05, 0.1, 0.1]),
    ],
)
def test_lr_follows_its_schedule_by_step(schedule, rates):
    task = Letters()
    module = sft(task, optimization=Optimization(0.1, schedule, warmup=0.5))
    rows = fit(module, demonstrations(task), max_steps=4, limit_val_batches=0).rows
    assert [row["lr"] for row in rows] == pytest.approx(rates)


@pytest.mark.parametrize("budget", [{"max_epochs": 2}, {"max_epochs": 5, "max_steps": 8}, {"max_steps": 8}])
def test_schedule_knows_the_budget_however_it_is_given(budget):
    task = Letters()  # 13 demonstrations in batches of 4: four steps a pass, the last one with one row
    module = sft(task, optimization=Optimization(0.08, "linear"))
    rows = fit(module, demonstrations(task), limit_val_batches=0, **budget).rows
    assert [row["lr"] for row in rows] == pytest.approx([0.08 - 0.01 * step for step in range(8)])


def test_schedule_without_an_end_is_refused():
    task = Letters()
    module = sft(task, optimization=Optimization(0.1, "linear"))
    with pytest.raises(UserError, match=r"optimization\.schedule linear.*trainer\.max_steps"):
        fit(module, demonstrations(task), max_epochs=-1, max_time={"seconds": 1})


def test_last_step_is_followed_by_an_evaluation():
    task = Letters()
    settings = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    rows = fit(sft(task, log_every=100), demonstrations(task), max_steps=7, **settings).rows
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 6, 7]
    rows = fit(sft(task, log_every=100), demonstrations(task), max_steps=6, **settings).rows
    assert [row["step"] for row in rows if "eval/loss" in row] == [3, 6]


@pytest.mark.parametrize("budget", [{"max_steps": 10}, {"max_epochs": 3}])
def test_resumed_sft_is_bit_identical_in_the_middle_of_a_pass(tmp_path, budget):
    task = Letters()

    def run(**settings):
        module = sft(task, optimization=Optimization(1e-2, "cosine", warmup=0.2, weight_decay=0.1))
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
        trained = []
        record = AtHook("on_train_end", lambda trainer, _: trained.append(trainer.optimizers[0].state_dict()))
        checks = {"val_check_interval": 4, "check_val_every_n_epoch": None}
        rows = fit(module, demonstrations(task), keep, record, **budget, **checks, **settings)
        return rows.untimed(), snapshot(module), trained[0]

    whole = run()
    resumed = run(ckpt_path=tmp_path / "step=6.ckpt")
    assert resumed[0] == [row for row in whole[0] if row["step"] > 6]
    assert same(resumed[1], whole[1])
    moments = [{n: t for n, t in enumerate(s["state"].values())} for s in (resumed[2], whole[2])]
    assert all(same(moments[0][number], moments[1][number]) for number in moments[0])


def test_counts_of_what_was_shortened_go_on_after_a_resume(tmp_path):
    task = Letters()

    def run(**settings):
        module = sft(task, max_response_tokens=2)  # longer answers lose their last letters
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
        return fit(module, demonstrations(task), keep, max_steps=4, limit_val_batches=0, **settings).untimed()

    whole = run()
    assert whole[-1]["data/responses_shortened"] > whole[1]["data/responses_shortened"] > 0
    assert run(ckpt_path=tmp_path / "step=2.ckpt") == whole[2:]


def test_texts_that_spell_out_special_tokens_are_plain_and_counted():
    class Forged(Letters):
        def demonstrations(self, split):
            return [Demonstration(f"{x.prompt} </s>", x.response) for x in super().demonstrations(split)]

    module, task = sft(Forged()), Forged()
    rows = fit(module, demonstrations(task), max_steps=3, limit_val_batches=0).rows
    assert [row["data/special_tokens_spelled"] for row in rows] == [4, 8, 12]  # all of each batch
    encoded = module.encode(task.demonstrations("train")[:4])
    assert not (encoded.context.input_ids[encoded.context.attention_mask] == 0).any()
    plain = fit(sft(Letters()), demonstrations(Letters()), max_steps=3, limit_val_batches=0).rows
    assert "data/special_tokens_spelled" not in plain[-1]


def test_loss_that_is_not_finite_stops_at_the_step():
    task = Letters()
    module = sft(task)

    def spoil(trainer, module):
        if trainer.global_step == 2:
            with torch.no_grad():
                module.policy.model.transformer.wte.weight[0] = math.nan

    with pytest.raises(UserError, match="the loss is nan at step 3"):
        fit(module, demonstrations(task), AtHook("on_train_batch_start", spoil), max_steps=4)


def test_wrong_data_is_refused_before_training():
    task = Letters()
    with pytest.raises(UserError, match="SFT needs data of class DemonstrationDataModule, got PreferenceDataModule"):
        fit(sft(task), PreferenceDataModule(task), max_steps=1)


def test_task_without_demonstrations_is_refused():
    with pytest.raises(UserError, match="SFT needs demonstrations, which task OneToken does not provide"):
        sft(OneToken())


def test_strategy_that_shares_out_weights_itself_is_refused(monkeypatch):
    task = Letters()
    trainer = quiet_trainer(max_steps=1)
    monkeypatch.setattr(Trainer, "strategy", FSDPStrategy())
    module = sft(task)
    module.trainer = trainer
    trainer.state.fn = "fit"
    with pytest.raises(UserError, match=r"trainer\.strategy is FSDPStrategy.*expected ddp"):
        module.setup("fit")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused(precision):
    task = Letters()
    with pytest.raises(UserError, match=rf"trainer\.precision is {precision}.*bf16-mixed"):
        fit(sft(task), demonstrations(task), max_steps=1, precision=precision)


def test_validation_of_a_checkpoint_returns_its_row(tmp_path):
    task = Letters()
    module, data = sft(task), demonstrations(task)
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    rows = fit(module, data, keep, max_steps=4).rows
    [row] = quiet_trainer().validate(sft(task), demonstrations(task), ckpt_path=tmp_path / "step=4.ckpt", verbose=False)
    assert row["step"] == 4
    assert row["eval/loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-6)
