import json

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.metrics import Description, Experience, Metric, undeclared
from rlhf_lightning.records.runs import load_run

DESCRIPTION = Description(
    "policy",
    "Mine",
    Experience("sampled responses", counter="samples"),
    (Metric("Gold", "of replies", "objective/gold", "eval/gold", role="gold"), Metric("Loss", "", "a/loss", own=True)),
)


def test_a_description_survives_its_file():
    content = json.loads(json.dumps(DESCRIPTION.as_dict()))
    assert Description.from_dict(content) == DESCRIPTION
    later = content | {"later": 1, "metrics": [metric | {"later": 1} for metric in content["metrics"]]}
    assert Description.from_dict(later) == DESCRIPTION


def test_load_run_reads_what_a_run_declares(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(DESCRIPTION.as_dict()))
    (tmp_path / "metrics.csv").write_text("step,sft/loss\n1,2\n")  # would be another kind by its columns
    run = load_run(tmp_path)
    assert run.description == DESCRIPTION
    assert (run.kind, run.algorithm) == ("policy", "Mine")
    assert [metric.key for metric in run.panels] == ["eval/gold", "a/loss", "sft/loss"]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "policy"}', '{"kind": "a", "algorithm": "b", "metrics": [{}]}'])
def test_an_unreadable_description_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "metrics.csv").write_text("step,sft/loss\n1,2\n")
    with pytest.raises(UserError, match=r"run\.json"):
        load_run(tmp_path)


def test_undeclared_metrics_are_titled_by_their_names():
    logged = ["iteration", "lr", "eval/loss", "policy/loss", "value/loss", "eval/kl_ref_token", "policy/clip_fraction"]
    found = [(metric.title, metric.name, metric.heldout) for metric in undeclared(logged, ())]
    assert found == [
        ("Loss", "policy/loss", "eval/loss"),
        ("Loss", "value/loss", ""),
        ("KL ref token", "", "eval/kl_ref_token"),
        ("Clip fraction", "policy/clip_fraction", ""),
    ]


def test_what_has_no_panel_of_its_own_is_left_out():
    secondary = ["samples", "timing/update_seconds", "rollout/tokens_per_second"]
    secondary += ["eval/win_rate_low", "eval/win_rate_high", "eval/gold_helpful"]
    logged = ["iteration", "eval/win_rate", "eval/gold", "a/b", "a/c", "a/d", *secondary]
    declared = (Metric("B by C", "", "a/b", per="a/c"), Metric("D", "", "a/d", shown=False))
    assert [metric.key for metric in undeclared(logged, declared)] == ["eval/gold", "eval/win_rate"]
