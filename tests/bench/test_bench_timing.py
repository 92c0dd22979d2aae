import pytest
import torch

from rlhf_lightning.bench import decoding, models, updates
from rlhf_lightning.bench.machine import bandwidth, matrix_rate
from rlhf_lightning.bench.rows import BenchRow, MemoryRow
from rlhf_lightning.bench.timing import Timings, timed_in_turn

CPU = torch.device("cpu")


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
    monkeypatch.setattr(decoding, "NEW_TOKENS", 6)
    lengths = {}

    def counted(ways, rounds, *, track):
        for name, run in ways.items():
            done = run()
            if name == "generate":
                assert done.shape == (64, decoding.PROMPT_LENGTH + done.shape[1] - decoding.PROMPT_LENGTH)
                lengths[name] = done.shape[1] - decoding.PROMPT_LENGTH
            else:
                lengths[name] = int(done.lengths().max())
        return Timings({})

    monkeypatch.setattr(decoding, "timed_in_turn", counted)
    size = models.Size("gpt2", width=16, layers=1, heads=2, vocabulary=120)
    decoding.rollout_timings(size, CPU, 1, ends=ends)
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


def test_both_ways_to_update_are_timed(monkeypatch):
    monkeypatch.setattr(updates, "LENGTH", 6)
    size = models.Size("gpt2", width=16, layers=1, heads=2, vocabulary=120)
    timings = updates.update_timings(size, CPU, 1, least=1)
    assert list(timings.seconds) == ["padded", "end to end"]


@pytest.mark.slow
def test_chunks_need_less_memory_than_all_logits():
    size = models.Size("gpt2", width=16, layers=1, heads=2, vocabulary=20_000)
    peaks = updates.peak_memory(size, CPU)
    assert peaks["in chunks"] < 0.7 * peaks["all logits"]
    (first, second) = MemoryRow("work", {"all logits": 3e9, "in chunks": 1e9}, ours="in chunks").cells()
    assert first == ["work", "all logits", "3,000 MB", "3.00"]
    assert second == ["work", "in chunks", "1,000 MB", ""]
