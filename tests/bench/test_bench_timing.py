from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lightning.bench import decoding, limits, models, rows, updates
from rlhf_lightning.bench.iteration import Stages, stages_of_iterations
from rlhf_lightning.bench.machine import bandwidth, matrix_rate
from rlhf_lightning.bench.rows import BenchRow, LimitRow, MemoryRow, StagesRow
from rlhf_lightning.bench.timing import Timings, timed_in_turn

CPU = torch.device("cpu")
TINY = models.Size("gpt2", width=16, layers=1, heads=2, vocabulary=120)


def test_ways_are_run_in_turn_and_the_first_round_does_not_count():
    order, shown = [], []

    def track(items):
        shown.extend(items)
        return items

    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = timed_in_turn(ways, 3, track=track)
    assert order == ["a", "b"] * 4
    assert shown == [0, 1, 2, 3]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_rounds():
    timings = Timings({"theirs": [2.0, 30.0, 4.0], "ours": [1.0, 10.0, 4.0]})
    assert timings.median("theirs") == 4
    assert timings.ratios("theirs", to="ours") == [1, 2, 3]
    row = BenchRow("work", Timings({"theirs": [2.0, 3.0, 0.5], "ours": [0.1, 0.1, 0.1]}), ours="ours")
    assert list(row.cells()) == [
        ["work", "theirs", "2.00 s", "20.00 (5.00 to 30.00)"],
        ["work", "ours", "100 ms", ""],
    ]


@pytest.mark.parametrize("name", models.SIZES)
def test_sizes_are_what_their_names_say(name):
    size = models.SIZES[name]
    parameters = sum(parameter.numel() for parameter in size.policy(CPU, context_length=64).parameters())
    assert parameters / 1e6 == pytest.approx(float(name.split()[1]), rel=0.05)


@pytest.mark.parametrize("ends", [0, 100])
def test_engines_and_generate_do_the_same_work(ends, monkeypatch):
    shape = models.Shape(length=6)
    lengths = {}

    def counted(ways, rounds, *, track):
        for name, run in ways.items():
            done = run()
            if name == "generate":
                assert len(done) == 64
                lengths[name] = done.shape[1] - shape.prompt_length
            else:
                lengths[name] = int(done.lengths().max())
        return Timings({})

    monkeypatch.setattr(decoding, "timed_in_turn", counted)
    decoding.rollout_timings(TINY, shape, CPU, 1, ends=ends)
    assert lengths["eager"] == lengths["fast"]
    assert all(length == 6 for length in lengths.values()) if ends == 0 else lengths["fast"] < 6


def test_prompts_vary_in_length_and_are_padded_on_the_left():
    policy = models.SIZES["GPT-2, 0.9 M"].policy(CPU, context_length=64)
    context = models.prompts(policy, 8, length=24)
    lengths = context.attention_mask.sum(-1)
    assert lengths.max() == 24
    assert lengths.min() >= 12
    assert len(lengths.unique()) > 2
    assert context.attention_mask[:, -1].all()


def test_limits_of_the_machine_are_numbers(monkeypatch):
    monkeypatch.setattr("rlhf_lightning.bench.machine._SIDE", 64)
    monkeypatch.setattr("rlhf_lightning.bench.machine._BYTES", 1 << 16)
    assert matrix_rate(CPU, torch.float32) > 0
    assert bandwidth(CPU) > 0


def test_both_ways_to_update_are_timed():
    timings = updates.update_timings(TINY, models.Shape(length=6), CPU, 1, least=1)
    assert list(timings.seconds) == ["padded", "end to end"]


def test_stages_and_what_is_besides_add_up_to_an_iteration():
    found = stages_of_iterations(TINY, models.Shape(prompts=2, length=6), CPU, 1, ends=0)
    assert list(found.stages) == ["rollout", "score", "reference", "update"]
    assert min(found.stages.values()) > 0
    assert sum(found.stages.values()) + found.besides == pytest.approx(found.whole)
    lines = list(StagesRow("work", Stages(2.0, {"update": 1.5}, 0.5)).cells())
    assert lines == [
        ["work", "iteration", "2.00 s", ""],
        ["work", "update", "1.50 s", "75.0% of the iteration"],
        ["work", "Lightning, metrics, files", "500 ms", "25.0% of the iteration"],
    ]


def test_operations_and_bytes_by_hand():
    policy = TINY.policy(CPU, context_length=32)
    shape = models.Shape(prompts=2, samples=3, prompt_length=4, length=5)  # 6 tokens of prompts, 30 of responses
    weights = 16 * 3 * 16 + 16 * 16 + 2 * 16 * 64
    assert limits.update_operations(policy, shape) == 6 * (weights * 36 + 120 * 16 * 30)
    assert limits.step_bytes(policy, shape) == 4 * (weights + 120 * 16 + 2 * 16 * (6 + 15))
    assert list(LimitRow("work", 0.5, 1e9, 4e9, "GB/s").cells()) == [
        ["work", "1.0 GB/s", "500 ms", "25% of the machine's"]
    ]


def test_limits_and_growth_of_small_models(monkeypatch):
    monkeypatch.setattr(rows, "workload", lambda device: ({"tiny": TINY}, models.Shape(prompts=2, length=4)))
    monkeypatch.setattr(rows, "VOCABULARIES", (120, 240))
    monkeypatch.setattr("rlhf_lightning.bench.machine._SIDE", 64)
    monkeypatch.setattr("rlhf_lightning.bench.machine._BYTES", 1 << 16)
    assert [row.unit for row in rows.limit_rows(CPU, 1, shown)] == ["GFLOP/s", "GB/s"]
    grown = list(rows.growth_rows(CPU, 1, shown))
    assert [row.work for row in grown[:2]] == ["rollout, by responses", "gradient, by responses"]
    assert len(grown) == 8
    assert all(row.ours == next(iter(row.timings.seconds)) for row in grown)


def shown(items, what):
    return items


@pytest.mark.slow
def test_chunks_need_less_memory_than_all_logits():
    size = models.Size("gpt2", width=16, layers=1, heads=2, vocabulary=20_000)
    peaks = updates.peak_memory(size, CPU)
    assert peaks["in chunks"] < 0.7 * peaks["all logits"]
    (first, second) = MemoryRow("work", {"all logits": 3e9, "in chunks": 1e9}, ours="in chunks").cells()
    assert first == ["work", "all logits", "3,000 MB", "3.00"]
    assert second == ["work", "in chunks", "1,000 MB", ""]


def test_a_graphics_card_gets_chat_models_in_bfloat16():
    sizes, shape = models.workload(torch.device("cuda"))
    assert shape.responses == 256
    for name, size in sizes.items():
        with torch.device("meta"):
            counted = sum(
                p.numel() for p in AutoModelForCausalLM.from_config(size.config(context_length=320)).parameters()
            )
        assert counted / 1e9 == pytest.approx(float(name.split()[1]), abs=0.05)


def test_a_small_model_in_bfloat16_is_drawn_from_and_trained():
    size = replace(TINY, style="llama", kv_heads=1, dtype=torch.bfloat16)
    shape = models.Shape(prompts=2, length=6)
    policy = size.policy(CPU, context_length=shape.context_length)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert set(decoding.rollout_timings(size, shape, CPU, 1, ends=0).seconds) == {"generate", "eager", "fast"}
    assert set(updates.update_timings(size, shape, CPU, 1, least=1).seconds) == {"padded", "end to end"}
    assert stages_of_iterations(size, shape, CPU, 1, ends=shape.ends(size)).stages["update"] > 0
