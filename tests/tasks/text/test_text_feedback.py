"""Rankings, ratings and labels: what they mean, and which of them are refused."""

import itertools
import json
import logging

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.text import TextTask
from rlhf_lightning.tasks.text.feedback import check_responses
from rlhf_lightning.tasks.text.layouts import detect, parse
from rlhf_lightning.tasks.text.records import BadPairError, Layout, LayoutError
from rlhf_lightning.types import OVERALL, Demonstration, LabelledResponse, PreferencePair, Ranking, Rating

USER = {"role": "user", "content": "Hi?"}
ABC = {"prompt": "Hi", "responses": ["a", "b", "c"]}
ONE = {"prompt": "Hi", "response": "a"}


def reply(text):
    return {"role": "assistant", "content": text}


def task_of(tmp_path, rows, name="data.jsonl", **settings):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextTask(str(path), **settings)


def both(task, kind):
    return [one for split in ("train", "heldout") for one in getattr(task, kind)(split)]


# -- rankings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ranking_and_ranks_say_the_same(order):
    # response number order[0] is the best, so its rank is 1
    ranks = [order.index(number) + 1 for number in range(3)]
    expected = tuple("abc"[number] for number in order)
    for given in ({"ranking": list(order)}, {"ranks": ranks}, {"ranks": [rank / 2 - 7 for rank in ranks]}):
        record = parse({**ABC, **given})
        assert (record.layout, record.prompt, record.responses) == (Layout.RANKING, "Hi", expected)
        assert detect({**ABC, **given}) is Layout.RANKING


def test_responses_of_a_ranking_may_be_assistant_turns():
    turns = [[reply("a")], reply("b"), "c", [USER, reply("d")]]
    record = parse({"prompt": "Hi?", "responses": turns[:3], "ranking": [2, 0, 1]})
    assert (record.prompt, record.responses) == ([USER], ("c", "a", "b"))
    record = parse({"prompt": [USER], "responses": turns, "ranking": [3, 2, 1, 0]})
    assert (record.prompt, record.responses) == ([USER], ("d", "c", "b", "a"))


def test_annotator_and_objective_of_comparisons():
    who = {"annotator": 3, "objective": "concise"}
    pair = parse({"prompt": "Hi", "chosen": "a", "rejected": "b", **who})
    ranking = parse({**ABC, "ranking": [0, 1, 2], **who})
    assert pair.feedback == (PreferencePair("Hi", "a", "b", "3", objective="concise"),)
    assert ranking.feedback == (Ranking("Hi", ("a", "b", "c"), "3", "concise"),)
    assert parse({**ABC, "ranking": [0, 1, 2]}).feedback[0].objective is None


def test_null_ranking_counts_as_absent():
    assert detect({**ABC, "ranking": None, "ranks": [1, 2, 3]}) is Layout.RANKING
    assert detect({**ABC, "ranking": None}) is Layout.PROMPT


BAD_RANKINGS = {
    "tied ranks": {**ABC, "ranks": [1, 2, 2]},
    "fewer ranks than responses": {**ABC, "ranks": [1, 2]},
    "more ranks than responses": {**ABC, "ranks": [1, 2, 3, 4]},
    "a ranking that repeats an index": {**ABC, "ranking": [0, 1, 1]},
    "a ranking that leaves out a response": {**ABC, "ranking": [2, 0]},
    "a ranking with an index of no response": {**ABC, "ranking": [1, 2, 3]},
    "fewer than two responses": {"prompt": "Hi", "responses": ["a"], "ranking": [0]},
    "identical responses": {"prompt": "Hi", "responses": ["a", "b", " a"], "ranking": [0, 1, 2]},
    "empty response": {"prompt": "Hi", "responses": ["a", "", "b"], "ranks": [1, 2, 3]},
    "empty prompt": {"prompt": " ", "responses": ["a", "b"], "ranking": [0, 1]},
    "no user turn before the reply": {"prompt": [USER, reply("x")], "responses": ["a", "b"], "ranking": [0, 1]},
    "prompts differ": {
        "prompt": [USER],
        "responses": [[{**USER, "content": "Ho"}, reply("a")], "b"],
        "ranking": [0, 1],
    },
}


@pytest.mark.parametrize("reason", BAD_RANKINGS)
def test_bad_ranking_reason(reason):
    with pytest.raises(BadPairError) as caught:
        check_responses(parse(BAD_RANKINGS[reason]))
    assert caught.value.reason == reason
    assert "; expected " in str(caught.value)


def test_negative_index_is_no_index_from_the_end():
    with pytest.raises(BadPairError, match="index of no response; expected numbers from 0 to 2, got -1"):
        parse({**ABC, "ranking": [0, 1, -1]})


@pytest.mark.parametrize("reason", BAD_RANKINGS)
def test_task_names_the_line_of_a_bad_ranking_or_drops_and_counts_it(reason, tmp_path, caplog):
    good = [{"prompt": f"q {i}", "responses": ["a", "b", "c"], "ranking": [0, 1, 2]} for i in range(3)]
    if not isinstance(BAD_RANKINGS[reason]["prompt"], str):
        good = [{**row, "prompt": [{**USER, "content": row["prompt"]}]} for row in good]
    rows = [*good[:2], BAD_RANKINGS[reason], good[2]]
    with pytest.raises(UserError) as caught:
        task_of(tmp_path, rows).rankings("train")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'data.jsonl'}:3: {reason}; expected ")
    assert "on_bad_pair: drop" in message
    assert "\n" not in message
    with caplog.at_level(logging.WARNING):
        task = task_of(tmp_path, rows, on_bad_pair="drop")
        assert len(both(task, "rankings")) == 3
    assert task.dropped == {reason: 1}
    assert f"dropped 1 records (1 {reason})" in caplog.text


# -- ratings -------------------------------------------------------------------------------------------------------

RATINGS = {
    "a number": ({**ONE, "rating": 4}, ({OVERALL: 4.0},)),
    "a number of one objective": ({**ONE, "rating": 4, "objective": "concise"}, ({"concise": 4.0},)),
    "by objective": ({**ONE, "ratings": {"helpful": 1, "harmless": -0.5}}, ({"helpful": 1.0, "harmless": -0.5},)),
    "both": ({**ONE, "rating": 3, "ratings": {"helpful": 1}}, ({OVERALL: 3.0, "helpful": 1.0},)),
    "null is not rated": ({**ONE, "ratings": {"helpful": 1, "harmless": None}, "rating": None}, ({"helpful": 1.0},)),
    "several responses": ({**ABC, "ratings": [1, 2.5, 1]}, ({OVERALL: 1.0}, {OVERALL: 2.5}, {OVERALL: 1.0})),
    "several by objective": (
        {**ABC, "ratings": [{"x": 1}, {"x": 2, "y": 0}, {"y": 5}]},
        ({"x": 1.0}, {"x": 2.0, "y": 0.0}, {"y": 5.0}),
    ),
}


@pytest.mark.parametrize("name", RATINGS)
def test_parse_ratings(name):
    fields, expected = RATINGS[name]
    record = parse({**fields, "annotator": "ada"})
    assert tuple(rating.ratings for rating in record.feedback) == expected
    assert {rating.annotator for rating in record.feedback} == {"ada"}
    assert record.responses == (("a",) if "response" in fields else ("a", "b", "c"))
    assert record.layout is (Layout.RATING if "response" in fields else Layout.RATINGS)
    check_responses(record)


def test_rated_responses_may_be_the_same_but_not_empty():
    check_responses(parse({"prompt": "Hi", "responses": ["a", "a"], "ratings": [1, 2]}))
    with pytest.raises(BadPairError, match="empty response; expected text in every response"):
        check_responses(parse({"prompt": "Hi", "responses": ["a", " "], "ratings": [1, 2]}))


WRONG = {
    "rating is NaN": ({**ONE, "rating": float("nan")}, "'rating' is nan; expected a finite number"),
    "rating is infinite": ({**ONE, "rating": float("-inf")}, "'rating' is -inf; expected a finite number"),
    "rating is text": ({**ONE, "rating": "5"}, "'rating' is text; expected a number"),
    "rating is a boolean": ({**ONE, "rating": True}, "'rating' is a boolean; expected a number"),
    "NaN in an object": ({**ONE, "ratings": {"x": 1, "y": float("nan")}}, "'ratings y' is nan; expected a finite"),
    "text in an object": ({**ONE, "ratings": {"x": "good"}}, "'ratings x' is text; expected a number"),
    "no objective": ({**ONE, "ratings": {}}, "'ratings' holds no number; expected at least one objective"),
    "nothing but null": ({**ONE, "ratings": {"x": None}}, "'ratings' holds no number"),
    "ratings of one are a list": ({**ONE, "ratings": [1]}, "'ratings' is a list; expected an object of objectives"),
    "ratings of several are an object": ({**ABC, "ratings": {"x": 1}}, "'ratings' is an object; expected a list"),
    "NaN in a list": ({**ABC, "ratings": [1, float("nan"), 2]}, "'ratings 1' is nan; expected a finite number"),
    "null in a list": ({**ABC, "ratings": [1, 2, None]}, "'ratings 2' is null; expected a number, or an object"),
    "boolean in a list": ({**ABC, "ratings": [{"x": False}, 1, 2]}, "'ratings 0 x' is a boolean; expected a number"),
    "fewer ratings": ({**ABC, "ratings": [1, 2]}, "fewer ratings than responses; expected one for each response"),
    "more ratings": ({**ABC, "ratings": [1, 2, 3, 4]}, "more ratings than responses"),
    "no responses": ({"prompt": "Hi", "responses": [], "ratings": []}, "'responses' is an empty list; expected a list"),
    "responses are text": ({"prompt": "Hi", "responses": "ab", "ranking": [0, 1]}, "'responses' is text; expected"),
    "response is a number": ({"prompt": "Hi", "responses": ["a", 3], "ranking": [0, 1]}, "'responses 1' is a number"),
    "response is a user turn": (
        {"prompt": "Hi", "responses": ["a", USER], "ranking": [0, 1]},
        "'responses 1' ends with a user turn; expected an assistant turn",
    ),
    "ranking is a number": ({**ABC, "ranking": 2}, "'ranking' is a number; expected a list"),
    "ranking of texts": (
        {**ABC, "ranking": ["a", "b", "c"]},
        "'ranking' holds text; expected whole numbers from 0 to 2",
    ),
    "ranking of booleans": ({**ABC, "ranking": [True, False, 2]}, "'ranking' holds a boolean; expected whole numbers"),
    "NaN ranks": ({**ABC, "ranks": [1, float("nan"), 3]}, "'ranks' is nan; expected a finite number"),
    "text ranks": ({**ABC, "ranks": ["1", "2", "3"]}, "'ranks' is text; expected a list of numbers"),
    "both": ({**ABC, "ranks": [1, 2, 3], "ranking": [0, 1, 2]}, "both 'ranking' and 'ranks'; expected one of them"),
    "label is text": ({**ONE, "label": "true"}, "'label' is 'true'; expected true or false (or 1 or 0)"),
    "label is another number": ({**ONE, "label": -1}, "'label' is -1; expected true or false (or 1 or 0)"),
    "label is NaN": ({**ONE, "label": float("nan")}, "'label' is nan; expected true or false (or 1 or 0)"),
    "objective is a list": ({**ABC, "ranks": [1, 2, 3], "objective": ["x"]}, "'objective' is a list; expected a name"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("on_bad_pair", ["error", "drop"])
def test_wrong_values_are_one_line_that_names_the_record(name, on_bad_pair, tmp_path):
    fields, message = WRONG[name]
    with pytest.raises(LayoutError) as caught:
        parse(fields)
    assert not isinstance(caught.value, BadPairError)
    with pytest.raises(UserError) as told:
        task_of(tmp_path, [fields], on_bad_pair=on_bad_pair).prompts("train")
    assert str(told.value).startswith(f"{tmp_path / 'data.jsonl'}:1: ")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["completion", "response"])
@pytest.mark.parametrize(("value", "label"), [(True, True), (False, False), (1, True), (0, False), (1.0, True)])
def test_parse_labels(key, value, label):
    record = parse({"prompt": "Hi", key: "a", "label": value, "annotator": "ada", "objective": "x"})
    assert (record.layout, record.responses) == (Layout.LABEL, ("a",))
    assert record.feedback == (LabelledResponse("Hi", "a", label, "ada", "x"),)
    assert record.feedback[0].label is label


@pytest.mark.parametrize("prompt", ["Hi?", [USER]])
def test_labelled_completions_may_be_messages(prompt):
    record = parse({"prompt": prompt, "completion": [reply("a")], "label": True})
    assert record.feedback == (LabelledResponse([USER], "a", True),)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "Hi", "completion": " ", "label": True}, "empty response"),
        ({"prompt": " ", "completion": "a", "label": True}, "empty prompt"),
        ({"prompt": [USER, reply("a")], "completion": "b", "label": False}, "no user turn before the reply"),
    ],
)
def test_bad_labelled_response_is_refused_or_dropped(fields, reason, tmp_path):
    good = fields if reason == "empty response" else {**fields, "completion": "a"}
    prompts = [f"q {i}" if isinstance(good["prompt"], str) else [{**USER, "content": f"q {i}"}] for i in range(2)]
    rows = [*({"prompt": prompt, "completion": "a", "label": 0} for prompt in prompts), fields]
    with pytest.raises(UserError, match=rf"data\.jsonl:3: {reason}; expected .*on_bad_pair: drop"):
        task_of(tmp_path, rows).labels("train")
    task = task_of(tmp_path, rows, on_bad_pair="drop")
    assert len(both(task, "labels")) == 2
    assert task.dropped == {reason: 1}


def test_rated_and_labelled_responses_provide_both(tmp_path):
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "rating": i, "label": i > 1} for i in range(4)]
    task = task_of(tmp_path, rows)
    assert task.provides == {"prompts", "groups", "ratings", "labels"}
    rated = {rating.response: rating.ratings for rating in both(task, "ratings")}
    assert rated == {f"a {i}": {OVERALL: float(i)} for i in range(4)}
    assert {label.response: label.label for label in both(task, "labels")} == {f"a {i}": i > 1 for i in range(4)}


@pytest.mark.parametrize("missing", [{}, {"label": None}])
def test_missing_label_names_the_line(missing, tmp_path):
    rows = [{"prompt": f"q {i}", "completion": "a", "label": True} for i in range(2)]
    with pytest.raises(UserError) as told:
        task_of(tmp_path, [*rows, {"prompt": "q 3", "completion": "a", **missing}]).labels("train")
    path = tmp_path / "data.jsonl"
    assert str(told.value) == (
        f"{path}:3: the layout is prompt/response with text, but that of {path}:1 is prompt/completion/label with "
        "text; expected one layout per file"
    )


# -- what a task makes of them -------------------------------------------------------------------------------------


def test_rankings_provide_preferences_and_demonstrations(tmp_path):
    who = {"annotator": "ada", "objective": "helpful"}
    rows = [{"prompt": f"q {i}", "responses": ["b", "c", "a"], "ranking": [2, 0, 1], **who} for i in range(4)]
    task = task_of(tmp_path, rows)
    assert task.provides == {"prompts", "groups", "demonstrations", "preferences", "rankings", "labels"}
    assert sorted(both(task, "rankings"), key=lambda one: one.prompt) == [
        Ranking(f"q {i}", ("a", "b", "c"), "ada", "helpful") for i in range(4)
    ]
    pairs = sorted(both(task, "preferences"), key=lambda one: one.prompt)
    assert [pair.responses for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")] * 4
    assert all((pair.annotator, pair.objective, pair.margin) == ("ada", "helpful", None) for pair in pairs)
    assert task.demonstrations("heldout")[0] == Demonstration(task.prompts("heldout")[0], "a")
    with pytest.raises(UserError, match="needs ratings, which task TextTask does not provide"):
        task.ratings("train")


def test_pairs_are_rankings_of_two(tmp_path):
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b", "margin": 2, "objective": "x"} for i in range(3)]
    task = task_of(tmp_path, rows)
    assert {one.responses for one in both(task, "rankings")} == {("a", "b")}
    assert both(task, "preferences")[0] == PreferencePair(both(task, "prompts")[0], "a", "b", None, 2.0, "x")


def test_ratings_of_one_response_and_of_several(tmp_path):
    single = task_of(tmp_path, [{"prompt": f"q {i}", "response": "a", "rating": i} for i in range(5)])
    assert single.provides == {"prompts", "groups", "ratings"}
    assert sorted(one.ratings[OVERALL] for one in both(single, "ratings")) == [0, 1, 2, 3, 4]
    rows = [{**ABC, "prompt": f"q {i}", "ratings": [1, {"x": 2}, 3], "annotator": "ada"} for i in range(4)]
    task = task_of(tmp_path, rows, "more.jsonl")
    (first, second, third), prompt = task.ratings("heldout")[:3], task.prompts("heldout")[0]
    assert first == Rating(prompt, "a", {OVERALL: 1.0}, "ada")
    assert second == Rating(prompt, "b", {"x": 2.0}, "ada")
    assert third == Rating(prompt, "c", {OVERALL: 3.0}, "ada")
    assert len(both(task, "ratings")) == 12
    with pytest.raises(UserError, match="needs demonstrations"):
        task.demonstrations("train")


def test_labels_are_given_in_the_order_of_the_file(tmp_path):
    rows = [{"prompt": f"q {i}", "completion": "ab"[i % 2], "label": i % 2 == 0} for i in range(6)]
    task = task_of(tmp_path, rows)
    assert task.provides == {"prompts", "groups", "labels"}
    numbers = [int(prompt.split()[1]) for prompt in both(task, "prompts")]
    assert both(task, "labels") == [LabelledResponse(f"q {i}", "ab"[i % 2], i % 2 == 0) for i in numbers]
    with pytest.raises(UserError, match="needs demonstrations"):
        task.demonstrations("train")


def test_pairs_give_two_labels_and_rankings_those_of_all_their_pairs(tmp_path):
    pair = {"chosen": "a", "rejected": "b", "annotator": "ada", "objective": "x"}
    task = task_of(tmp_path, [{"prompt": f"q {i}", **pair} for i in range(3)])
    prompt = task.prompts("heldout")[0]
    assert task.labels("heldout")[:2] == [
        LabelledResponse(prompt, "a", True, "ada", "x", compared_with="b"),
        LabelledResponse(prompt, "b", False, "ada", "x", compared_with="a"),
    ]
    assert len(both(task, "labels")) == 6
    rows = [{"prompt": f"q {i}", "responses": ["b", "c", "a"], "ranking": [2, 0, 1]} for i in range(2)]
    ranked = task_of(tmp_path, rows, "ranked.jsonl").labels("heldout")
    # a > b > c has the pairs (a, b), (a, c) and (b, c)
    expected = [("a", True), ("b", False), ("a", True), ("c", False), ("b", True), ("c", False)]
    assert [(label.response, label.label) for label in ranked] == expected


def test_one_layout_per_file(tmp_path):
    rows = [{**ABC, "ranking": [0, 1, 2]}, {**ABC, "ratings": [1, 2, 3]}]
    with pytest.raises(
        UserError, match=r"data\.jsonl:2: the layout is prompt/responses/ratings with text, but that of"
    ):
        task_of(tmp_path, rows).prompts("train")
