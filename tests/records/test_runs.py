import json
import subprocess
import sys

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.runs import load_run, names

METRICS = """\
iteration,objective/score,eval/gold
0,,0.61
1,0.1,
2,0.2,0.7
"""
SAMPLE = {"iteration": 0, "row": 0, "prompt": "tell me", "response": "no", "score": 0.5, "gold": None, "kl": 0.0}


def write_run(path, metrics=METRICS, done=True, **files):
    path.mkdir(parents=True)
    (path / "metrics.csv").write_text(metrics, encoding="utf-8")
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    if done:
        (path / "DONE").touch()
    return path


def test_load_run_reads_every_file(tmp_path):
    path = write_run(
        tmp_path / "ppo",
        samples__jsonl=json.dumps(SAMPLE) + "\n",
        config__yaml="model: {class_path: PPO}\n",
        environment__json='{"command": "fit"}',
        evaluation__json='{"accuracy": 0.7, "bins": []}',
        warnings__jsonl='{"iteration": 2, "detector": "Hacking", "message": "look"}\n',
    )
    run = load_run(path)
    assert (run.name, run.kind, run.axis, run.done) == ("ppo", "policy", "iteration", True)
    assert run.samples == [SAMPLE]
    assert run.config == {"model": {"class_path": "PPO"}}
    assert run.environment == {"command": "fit"}
    assert run.evaluation == {"accuracy": 0.7, "bins": []}
    assert run.warnings == [{"iteration": 2, "detector": "Hacking", "message": "look"}]
    assert run.stages == {}


def test_series_has_only_finite_values_at_their_iterations(tmp_path):
    run = load_run(write_run(tmp_path / "a", "iteration,policy/ratio_max\n0,\n1,2.5\n2,inf\n3,nan\n4,3\n"))
    assert run.series("policy/ratio_max").to_dict() == {1: 2.5, 4: 3.0}
    assert run.series("eval/gold").empty


def test_rows_of_a_resumed_run_count_once_with_their_last_values(tmp_path):
    run = load_run(write_run(tmp_path / "a", "iteration,policy/loss,eval/gold\n1,1,\n2,2,0.5\n2,7,\n3,3,\n"))
    assert run.series("policy/loss").to_dict() == {1: 1, 2: 7, 3: 3}
    assert run.series("eval/gold").to_dict() == {2: 0.5}


def test_samples_are_sorted_and_a_resumed_run_s_repeats_replaced(tmp_path):
    drawn = [SAMPLE | {"iteration": iteration, "row": row} for iteration, row in ((10, 1), (0, 0), (10, 0))]
    drawn.append(SAMPLE | {"iteration": 10, "row": 1, "response": "again"})
    run = load_run(write_run(tmp_path / "a", samples__jsonl="\n".join(map(json.dumps, drawn)) + "\n"))
    assert [(s["iteration"], s["row"], s["response"]) for s in run.samples] == [
        (0, 0, "no"),
        (10, 0, "no"),
        (10, 1, "again"),
    ]


def test_a_line_separator_within_a_reply_ends_no_line(tmp_path):
    sample = SAMPLE | {"response": "one\u2028two\u0085three"}
    text = json.dumps(sample, ensure_ascii=False) + "\n"
    assert load_run(write_run(tmp_path / "a", samples__jsonl=text)).samples == [sample]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("iteration,a\n0,1\n1\n", "line 3: 1 values for 2 columns"),
        ("iteration,a\n0,1\n\n2,much\n", "line 4: column 'a' holds 'much', expected a number"),
        ("iteration,a\n,1\n", "line 2: column 'iteration' is empty"),
        ("iteration,a,a\n0,1,1\n", "line 1: column 'a' appears twice"),
    ],
)
def test_a_malformed_metrics_line_is_named(tmp_path, metrics, message):
    with pytest.raises(UserError) as caught:
        load_run(write_run(tmp_path / "a", metrics))
    assert str(caught.value) == f"{tmp_path / 'a' / 'metrics.csv'}, {message}"


def test_a_last_line_cut_off_by_an_interruption_is_left_out(tmp_path):
    for number, cut in enumerate(("1,0.", "1,1,2", "1,")):  # the second parses: of 2.75, say
        run = load_run(write_run(tmp_path / str(number), f"iteration,a,b\n0,1,2\n{cut}", done=False))
        assert len(run.metrics) == 1
    assert load_run(write_run(tmp_path / "head", "iteration,a", done=False)).metrics.empty
    half = json.dumps(SAMPLE) + "\n" + json.dumps(SAMPLE)[:20]
    assert len(load_run(write_run(tmp_path / "b", done=False, samples__jsonl=half)).samples) == 1


def test_a_cut_off_line_of_a_finished_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="line 3"):
        load_run(write_run(tmp_path / "a", "iteration,a,b\n0,1,2\n1,0.", done=True))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"iteration": 0, "row": 1}', "line 2: prompt, response, score missing"),
        ("[]", "line 2: iteration, row"),
    ],
)
def test_a_malformed_sample_is_named(tmp_path, line, message):
    text = json.dumps(SAMPLE) + "\n" + line + "\n"
    with pytest.raises(UserError, match=message):
        load_run(write_run(tmp_path / "a", samples__jsonl=text))


@pytest.mark.parametrize(
    ("name", "text"), [("config__yaml", "a: [1"), ("environment__json", "{"), ("evaluation__json", "[]")]
)
def test_an_unreadable_file_is_named(tmp_path, name, text):
    with pytest.raises(UserError, match=name.replace("__", r"\.")):
        load_run(write_run(tmp_path / "a", **{name: text}))


def test_config_cannot_construct_python_objects(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml, line 1, column 4: could not determine a constructor"):
        load_run(write_run(tmp_path / "a", config__yaml="a: !!python/object/apply:os.getcwd []\n"))


def test_a_missing_directory_lists_the_runs_beside_it(tmp_path):
    write_run(tmp_path / "ppo")
    write_run(tmp_path / "pipeline" / "sft")
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match=r"pp: no such directory; runs beside it: pipeline, ppo$"):
        load_run(tmp_path / "pp")
    with pytest.raises(UserError, match="runs beside it: none"):
        load_run(tmp_path / "nowhere" / "pp")


def test_a_directory_of_runs_is_no_run(tmp_path):
    write_run(tmp_path / "ppo")
    with pytest.raises(UserError, match=r"is not a run: expected metrics\.csv.*runs in it: ppo$"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        load_run(tmp_path / "ppo" / "metrics.csv")


def test_a_pipeline_has_its_stages_in_order(tmp_path):
    write_run(tmp_path / "p" / "policy")
    write_run(tmp_path / "p" / "sft", "step,sft/loss,eval/loss\n1,2,\n")
    run = load_run(tmp_path / "p")
    assert list(run.stages) == ["sft", "policy"]
    assert (run.kind, run.done) == ("pipeline", True)
    assert run.find("policy").name == "p/policy"
    assert run.find("sft").axis == "step"
    assert run.find("reward") is None


def test_a_pipeline_is_done_only_when_its_policy_is(tmp_path):
    write_run(tmp_path / "p" / "sft")
    assert not load_run(tmp_path / "p").done
    write_run(tmp_path / "p" / "policy", done=False)
    assert not load_run(tmp_path / "p").done


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("step,sft/loss,policy/grad_norm,eval/loss", "sft"),
        ("step,reward_model/loss,eval/accuracy", "reward"),
        ("iteration,objective/score", "policy"),
        ("step,dpo/loss,eval/gold", "preference"),
        ("iteration,env_steps,eval/score", "control"),
        ("step,eval/loss", "unknown"),
    ],
)
def test_kind_follows_from_the_metrics(tmp_path, columns, kind):
    assert load_run(write_run(tmp_path / "a", columns + "\n")).kind == kind


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ("task: {class_path: a.b.Control, init_args: {environment: CartPole-v1}}", "CartPole-v1"),
        ("task: {class_path: rlhf_lightning.Assistant}", "Assistant"),
        ("task: {class_path: Assistant}", "Assistant"),
        ("model: {class_path: PPO}", ""),
    ],
)
def test_task_is_the_environment_or_the_class(tmp_path, config, task):
    assert load_run(write_run(tmp_path / "a", config__yaml=config)).task == task


def test_setting_reads_a_dotted_key_and_misses_none(tmp_path):
    run = load_run(write_run(tmp_path / "a", config__yaml="model: {init_args: {max_kl: 0.01}, class_path: TRPO}"))
    assert run.setting("model.init_args.max_kl") == 0.01
    assert run.setting("model.init_args.max_kl.deeper") is None
    assert run.setting("data.init_args.batch_size") is None


def test_policy_is_the_stage_that_trained_one_whatever_its_kind(tmp_path):
    write_run(tmp_path / "p" / "sft", "step,sft/loss\n1,2\n")
    write_run(tmp_path / "p" / "policy", "step,dpo/loss,eval/gold\n0,,0.5\n1,0.69,\n")
    run = load_run(tmp_path / "p")
    assert run.policy is run.stages["policy"]
    assert (run.policy.kind, run.find("policy")) == ("preference", None)
    assert run.stages["sft"].policy is None


def test_a_run_that_has_only_started_is_read(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.yaml").write_text("a: 1\n")
    run = load_run(tmp_path / "policy")
    assert (run.kind, run.done, len(run.metrics), run.axis) == ("policy", False, 0, "iteration")


def test_names_tell_runs_apart(tmp_path):
    runs = [load_run(write_run(tmp_path / folder / "ppo")) for folder in ("a", "b")]
    assert names(runs) == ["a/ppo", "b/ppo"]
    assert names(runs[:1]) == ["ppo"]
    stages = [load_run(write_run(tmp_path / folder / "policy", stage__json="{}")) for folder in ("c", "d")]
    assert names(stages) == ["c", "d"]
    assert names(stages[:1]) == ["c/policy"]
    assert load_run(write_run(tmp_path / "sft")).name == "sft"


def test_names_grow_until_runs_are_told_apart(tmp_path):
    folders = ("a/x/ppo", "b/x/ppo", "c/y/ppo", "d/x/rloo")
    runs = [load_run(write_run(tmp_path / folder)) for folder in folders]
    assert names(runs) == ["a/x/ppo", "b/x/ppo", "y/ppo", "rloo"]
    stages = [load_run(write_run(tmp_path / f / "p" / "policy", stage__json="{}")) for f in ("e", "f")]
    assert names(stages) == ["e/p", "f/p"]
    assert names([runs[0], runs[0]])[0].endswith("/a/x/ppo")


def test_runs_are_read_without_torch():
    code = "import sys, rlhf_lightning.records.runs; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
