import copy
import json
import logging
import pickle
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.text import TextTask
from rlhf_lightning.types import Demonstration, PreferencePair

PAIRS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text(prompts):
    return [json.dumps(prompt) for prompt in prompts]


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", PAIRS)


def test_preferences_provide_everything(pairs):
    task = TextTask(pairs)
    assert task.provides == {"prompts", "groups", "demonstrations", "preferences", "rankings", "labels"}
    kept = task.preferences("train") + task.preferences("heldout")
    assert sorted(pair.prompt for pair in kept) == sorted(row["prompt"] for row in PAIRS)
    number = task.prompts("train")[0].split()[1]
    assert task.preferences("train")[0] == PreferencePair(f"question {number}", f"good {number}", f"bad {number}")
    assert task.demonstrations("train")[0] == Demonstration(f"question {number}", f"good {number}")
    assert task.gold() is None
    assert task.dropped == {}


def test_demonstrations_and_prompts_refuse_what_they_lack(tmp_path):
    shown = TextTask(write(tmp_path / "a.jsonl", [{"prompt": f"q {i}", "response": "a"} for i in range(9)]))
    assert shown.provides == {"prompts", "groups", "demonstrations"}
    assert {item.response for item in shown.demonstrations("train")} == {"a"}
    with pytest.raises(UserError, match="needs preferences, which task TextTask does not provide"):
        shown.preferences("train")
    asked = TextTask(write(tmp_path / "b.jsonl", [{"prompt": f"q {i}"} for i in range(9)]))
    assert asked.provides == {"prompts", "groups"}
    with pytest.raises(UserError, match="needs demonstrations"):
        asked.demonstrations("heldout")
    with pytest.raises(UserError, match="DPO needs preferences"):
        asked.require(frozenset({"preferences"}), "DPO")


def test_annotator_and_margin_are_kept(tmp_path):
    rows = [{**row, "annotator": "ada", "margin": 0.5} for row in PAIRS[:5]]
    pair = TextTask(write(tmp_path / "a.jsonl", rows)).preferences("train")[0]
    assert (pair.annotator, pair.margin) == ("ada", 0.5)


def test_construction_reads_nothing_and_provides_reads_one_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Hi"}\nbroken\n')
    task = TextTask(str(path))
    assert task.provides == {"prompts", "groups"}
    with pytest.raises(UserError, match=r"a\.jsonl:2: malformed JSON"):
        task.prompts("train")
    with pytest.raises(UserError, match=r"a\.jsonk: no such file; did you mean a\.jsonl"):
        TextTask(str(tmp_path / "a.jsonk"))
    with pytest.raises(UserError, match=r"b\.jsonl: no such file"):
        TextTask(str(path), heldout_path=str(tmp_path / "b.jsonl"))


def test_provides_of_a_bad_first_record(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl:1: no key 'prompt' \(its keys: q\)"):
        _ = TextTask(write(tmp_path / "a.jsonl", [{"q": "Hi"}])).provides
    identical = {"prompt": "Hi", "chosen": "a", "rejected": "a"}
    task = TextTask(write(tmp_path / "b.jsonl", [identical, *PAIRS]), on_bad_pair="drop")
    assert "preferences" in task.provides
    assert task.dropped == {"identical responses": 1}


def test_prompts_are_distinct_and_in_file_order(tmp_path):
    rows = PAIRS[:20] + PAIRS[5:10] + PAIRS[20:30]
    task = TextTask(write(tmp_path / "a.jsonl", rows))
    train = task.prompts("train")
    assert train == [row["prompt"] for row in PAIRS[:30] if row["prompt"] in train]
    assert len(task.preferences("train")) + len(task.preferences("heldout")) == 35


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(0, 40), min_size=2, max_size=60).filter(lambda xs: len(set(xs)) > 1),
    fraction=st.floats(0.01, 0.99),
    limit=st.none() | st.integers(1, 10),
    shuffle=st.randoms(use_true_random=False),
)
def test_split_is_disjoint_complete_and_stable_under_reordering(tmp_path, numbers, fraction, limit, shuffle):
    rows = [{"messages": [{"role": "user", "content": f"q {i}"}]} for i in numbers]
    sides = []
    for order in (rows, shuffle.sample(rows, len(rows))):
        path = write(tmp_path / "a.jsonl", order)
        task = TextTask(path, heldout_fraction=fraction, heldout_limit=limit)
        sides.append([set(text(task.prompts(split))) for split in ("train", "heldout")])
    train, heldout = sides[0]
    assert sides[0] == sides[1]
    assert train
    assert heldout
    assert not train & heldout
    assert len(train | heldout) == len(set(numbers))
    assert limit is None or len(heldout) <= limit


def test_heldout_fraction_limit_and_seed(pairs):
    # 200 prompts: mean 200 f, standard deviation √(200 f (1−f))
    for fraction, mean, deviation in ((0.05, 10, 3.1), (0.1, 20, 4.2), (0.5, 100, 7.1)):
        size = len(TextTask(pairs, heldout_fraction=fraction).prompts("heldout"))
        assert abs(size - mean) < 4 * deviation
    everything = TextTask(pairs, heldout_fraction=0.5)
    limited = TextTask(pairs, heldout_fraction=0.5, heldout_limit=7)
    assert len(limited.prompts("heldout")) == 7
    assert len(limited.prompts("train")) == 193
    assert set(limited.prompts("heldout")) < set(everything.prompts("heldout"))
    other = TextTask(pairs, heldout_fraction=0.5, seed=1)
    assert set(other.prompts("heldout")) != set(everything.prompts("heldout"))


def test_split_is_the_same_in_every_run(pairs):
    # The smallest three of `printf '0\\0"question %d"' i | sha256sum`: an upgrade must not move a prompt across.
    assert TextTask(pairs, heldout_limit=3).prompts("heldout") == ["question 77", "question 116", "question 183"]


def test_heldout_path(tmp_path, caplog):
    train = write(tmp_path / "train.jsonl", PAIRS[:50])
    heldout = write(tmp_path / "heldout.jsonl", PAIRS[45:60])
    with caplog.at_level(logging.WARNING):
        task = TextTask(train, heldout_path=heldout)
        assert task.prompts("train") == [row["prompt"] for row in PAIRS[:45]]
        assert task.prompts("heldout") == [row["prompt"] for row in PAIRS[45:60]]
    assert task.dropped == {"prompt also held out": 5}
    assert "dropped 5 records (5 prompt also held out)" in caplog.text
    few = TextTask(train, heldout_path=heldout, heldout_limit=4)
    assert len(few.prompts("heldout")) == 4
    assert len(few.prompts("train")) == 45
    with pytest.raises(UserError, match=r"heldout\.jsonl: every prompt is also in .*train\.jsonl"):
        TextTask(write(tmp_path / "heldout.jsonl", PAIRS[:3]), heldout_path=train).prompts("train")


def test_heldout_path_must_provide_as_much(tmp_path):
    train = write(tmp_path / "train.jsonl", PAIRS[:5])
    heldout = write(tmp_path / "heldout.jsonl", [{"prompt": "x"}])
    lacks = r"heldout\.jsonl: provides no demonstrations and no labels and no preferences and no rankings; expected"
    with pytest.raises(UserError, match=lacks):
        TextTask(train, heldout_path=heldout).prompts("heldout")
    assert TextTask(heldout, heldout_path=train).prompts("train") == ["x"]


def test_too_few_records(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIRS[0], PAIRS[0]])
    with pytest.raises(UserError, match=r"a\.jsonl: a single prompt; expected at least 2"):
        TextTask(path).prompts("train")
    two = TextTask(write(tmp_path / "b.jsonl", PAIRS[:2]))
    assert [len(two.prompts(split)) for split in ("train", "heldout")] == [1, 1]


USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        ({"prompt": "q"}, {"prompt": "q", "response": "a"}, "the layout is prompt/response with text, but that of"),
        ({"prompt": "q"}, {"prompt": [USER]}, "the layout is prompt with messages, but that of"),
        ({"messages": [USER]}, {"messages": [USER, REPLY]}, "the layout is messages ending with an assistant turn"),
        (PAIRS[0], {"chosen": [USER, REPLY], "rejected": [USER, USER | {"role": "assistant"}]}, "conversations, but"),
    ],
)
def test_mixed_file_names_the_line(tmp_path, first, other, message):
    path = write(tmp_path / "a.jsonl", [first, first, other])
    with pytest.raises(UserError) as caught:
        TextTask(path).prompts("train")
    assert str(caught.value).startswith(f"{path}:3: the layout is ")
    assert message in str(caught.value)
    assert f"{path}:1 is " in str(caught.value)
    assert "\n" not in str(caught.value)


BAD = [
    {"prompt": "x", "chosen": "a", "rejected": "a"},
    {"prompt": "x", "chosen": "", "rejected": "a"},
    {"prompt": " ", "chosen": "b", "rejected": "a"},
    {"prompt": "x", "chosen": "a ", "rejected": "a\n"},
]


def test_bad_pair_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [*PAIRS[:3], BAD[0]])
    with pytest.raises(UserError) as caught:
        TextTask(path).prompts("train")
    assert str(caught.value) == (
        f"{path}:4: identical responses; expected chosen and rejected to differ "
        "(on_bad_pair: drop leaves such records out)"
    )


def test_bad_pairs_are_dropped_counted_and_reported_once(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", [BAD[0], *PAIRS[:10], *BAD[1:]])
    task = TextTask(path, on_bad_pair="drop")
    with caplog.at_level(logging.WARNING):
        assert task.dropped == {"identical responses": 2, "empty response": 1, "empty prompt": 1}
        assert len(task.preferences("train")) + len(task.preferences("heldout")) == 10
        task.prompts("train")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: dropped 4 records (1 empty prompt, 1 empty response, 2 identical responses)"
    ]
    reasons = r"\(1 empty prompt, 1 empty response, 2 identical responses\)"
    with pytest.raises(UserError, match=f"all 4 records were dropped; expected some to be left {reasons}"):
        TextTask(write(tmp_path / "b.jsonl", BAD), on_bad_pair="drop").prompts("train")


def test_drop_does_not_hide_a_wrong_format(tmp_path):
    path = write(tmp_path / "a.jsonl", [*PAIRS[:3], {"prompt": "x", "chosen": "a"}])
    with pytest.raises(UserError, match=r"a\.jsonl:4: no key 'rejected'"):
        TextTask(path, on_bad_pair="drop").prompts("train")


def test_max_records_reads_the_beginning(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, PAIRS[:20])
    path.write_text(path.read_text() + "broken\n")
    task = TextTask(str(path), max_records=20)
    assert len(task.preferences("train")) + len(task.preferences("heldout")) == 20


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("heldout_fraction", 0.0),
        ("heldout_fraction", 1.0),
        ("heldout_fraction", float("nan")),
        ("heldout_limit", 0),
        ("max_records", 0),
        ("vocabulary", 261),
        ("on_bad_pair", "skip"),
    ],
)
def test_bad_argument_is_named(pairs, argument, value):
    with pytest.raises(UserError, match=rf"^{argument} is .*; expected "):
        TextTask(pairs, **{argument: value})


def test_task_can_be_copied_and_sent_to_another_process(pairs):
    task = TextTask(pairs)
    early = pickle.loads(pickle.dumps(task))
    assert early.prompts("train") == task.prompts("train")
    late = pickle.loads(pickle.dumps(task))
    assert late.preferences("heldout") == copy.deepcopy(task).preferences("heldout") == task.preferences("heldout")


def test_shuffled_file_keeps_every_record_on_its_side(tmp_path):
    rows = PAIRS[:]
    random.Random(0).shuffle(rows)
    one, other = (TextTask(write(tmp_path / name, r)) for name, r in (("a.jsonl", PAIRS), ("b.jsonl", rows)))
    for split in ("train", "heldout"):
        assert sorted(map(str, one.preferences(split))) == sorted(map(str, other.preferences(split)))
