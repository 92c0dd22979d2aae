import contextlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_lightning.commands.report import main
from rlhf_lightning.errors import UserError
from rlhf_lightning.records.runs import load_run
from rlhf_lightning.report.writing import figures_of
from tests.plots import synthetic_kinds
from tests.plots import synthetic_runs as synthetic


class Page(HTMLParser):
    """Tags with their attributes, and all text outside of styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "use", "path", "circle", "polyline", "br", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""


def report(capsys, *arguments):
    main([str(argument) for argument in arguments])
    path = Path(capsys.readouterr().out.strip())
    return path, Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The report of a whole pipeline, written once."""
    run = synthetic.write_pipeline(tmp_path_factory.mktemp("runs") / "quickstart")
    main([str(run)])
    path = run / "report" / "report.html"
    return SimpleNamespace(run=run, path=path, page=Page(path.read_text(encoding="utf-8")))


def test_report_is_written_beside_the_run_with_its_figures(pipeline):
    names = {"overoptimization", "dashboard", "components", "reward_model", "reward_accuracy", "reliability"}
    names |= {"reward_biases", "annotator_agreement", "sft"}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")} | {"report.html"}
    assert {file.name for file in pipeline.path.parent.iterdir()} == expected
    assert pipeline.page.open == []
    assert sum(tag == "figure" for tag, _ in pipeline.page.tags) == len(names)
    assert "the reward model is being exploited" in pipeline.page.text
    assert "What is missing" not in pipeline.page.text


def test_report_needs_no_network_and_runs_nothing(pipeline):
    tags = pipeline.page.tags
    assert not {"script", "link", "iframe", "object", "embed", "img"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "xlink:href", "src"))
    assert not re.search(r"@import|url\((?!#)", pipeline.path.read_text(encoding="utf-8"))


def test_text_of_models_and_prompts_is_shown_not_run(pipeline):
    assert synthetic.SCRIPT in pipeline.page.text
    assert "what does the clock cost <b>today</b>" in pipeline.page.text
    assert "<script" not in pipeline.path.read_text(encoding="utf-8")


def test_no_id_names_two_things(pipeline):
    text = pipeline.path.read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in pipeline.page.tags if "id" in attributes]
    repeated = {identity for identity in ids if ids.count(identity) > 1}
    for identity in repeated:  # A marker may be defined twice, but only with one and the same shape.
        assert len(set(re.findall(rf'<path id="{re.escape(identity)}" (d="[^"]+")', text))) == 1


def test_names_and_settings_are_escaped(capsys, tmp_path):
    run = synthetic.write_sft(tmp_path / "<i>a & b")
    (run / "config.yaml").write_text("note: '<script>x</script>'\n")
    path, page = report(capsys, run)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "<i>a & b" in page.text
    assert ("i", {}) not in page.tags


def test_several_runs_stand_side_by_side(capsys, tmp_path):
    exploited = synthetic.write_policy(tmp_path / "rloo", iterations=60)
    healthy = synthetic.write_policy(tmp_path / "ppo", "healthy", iterations=60)
    (healthy / "config.yaml").write_text(
        "task: {class_path: Assistant}\nmodel: {class_path: PPO, init_args: {clip_range: 0.4, kl_coef: 0.02}}\n"
    )
    path, page = report(capsys, exploited, healthy, healthy, "--out", tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    files = {file.stem for file in path.parent.iterdir()}
    assert {"learning_curves", "frontier", "dashboard", "ppo-overoptimization", "rloo-overoptimization"} <= files
    assert "Settings that differ" in page.text
    assert "model.init_args.clip_range" in page.text
    assert page.text.count("Gold rises with the proxy") >= 1


def test_runs_of_equal_names_have_pictures_and_verdicts_of_their_own(capsys, tmp_path):
    exploited = synthetic.write_policy(tmp_path / "a" / "seed 1" / "ppo", iterations=40)
    healthy = synthetic.write_policy(tmp_path / "b" / "seed 1" / "ppo", "healthy", iterations=40)
    other = synthetic.write_policy(tmp_path / "a-seed 1" / "ppo", "unstable", iterations=40)
    again = synthetic.write_policy(tmp_path / "a-seed-1" / "PPO", "unstable", iterations=40)
    path, page = report(capsys, exploited, healthy, other, again, "--out", tmp_path / "out")
    heads = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("role") == "img"]
    named = ["a/seed 1/ppo", "b/seed 1/ppo", "a-seed 1/ppo", "PPO"]
    assert [f"Proxy and gold reward: {name}" in heads for name in named] == [True] * 4
    pictures = [file.read_bytes() for file in path.parent.glob("*overoptimization*.svg")]
    assert len(pictures) == len(set(pictures)) == 4
    outcomes = [attributes["class"] for tag, attributes in page.tags if tag == "section" and "lead" in str(attributes)]
    assert outcomes == ["lead exploited", "lead improved", "lead declined", "lead declined"]


def test_files_of_figures_are_numbered_where_their_names_meet(tmp_path):
    runs = [load_run(synthetic.write_policy(tmp_path / name, iterations=20)) for name in ("a b", "a-b", "A b")]
    files = [name for entry, name, _, _ in figures_of(runs) if entry.scope == "run" and "overopt" in name]
    assert files == ["a-b-overoptimization", "a-b-overoptimization-2", "A-b-overoptimization-3"]


def weighted(path, concise):
    """A policy run on two objectives, one of which is weighed."""
    path.mkdir(parents=True)
    columns = {"iteration": [0.0, 10.0], "objective/score": [0.1, 0.4], "eval/score": [0.1, 0.4]}
    columns |= {"eval/score_helpful": [0.2, 0.6 - 0.1 * concise], "eval/score_concise": [0.1, 0.1 * concise]}
    synthetic.write_csv(path / "metrics.csv", {name: np.array(values) for name, values in columns.items()})
    weights = f"{{class_path: DeclaredWeights, init_args: {{weights: {{helpful: 1.0, concise: {concise}}}}}}}"
    config = f"task: {{class_path: Assistant}}\ndata: {{class_path: R, init_args: {{weights: {weights}}}}}\n"
    synthetic.finish(path, config=config)
    return path


def offered(*paths):
    """Names of the figures of these runs together that have their data."""
    names = set()
    for entry, name, _, draw in figures_of([load_run(path) for path in paths]):
        with contextlib.suppress(UserError):
            names |= {name} if entry.scope == "runs" and draw() else set()
    return names


def test_runs_that_weigh_objectives_differently_show_what_these_cost(tmp_path):
    runs = [weighted(tmp_path / f"w{weight}", weight) for weight in (0.5, 1.0)]
    figures = figures_of([load_run(path) for path in runs])
    (draw,) = [draw for _, name, _, draw in figures if name == "pareto"]
    assert draw().texts[0].get_text() == "Helpful against concise"
    assert "pareto" not in offered(runs[0], weighted(tmp_path / "again", 0.5))
    assert "pareto" not in offered(runs[0], synthetic_kinds.write_control(tmp_path / "trpo", iterations=10))


def test_several_reward_models_may_show_what_more_pairs_bring(tmp_path):
    small, large = (synthetic.write_reward(tmp_path / str(pairs), pairs=pairs, steps=50) for pairs in (2000, 8000))
    assert "learning_curve_of_pairs" in offered(small, large)
    assert "learning_curve_of_pairs" not in offered(small)


def test_a_control_run_is_told_in_the_words_of_control(capsys, tmp_path):
    path, page = report(capsys, synthetic_kinds.write_control(tmp_path / "trpo"))
    assert {file.stem for file in path.parent.iterdir()} == {"report", "learning_curves", "dashboard"}
    text = " ".join(page.text.split())
    told = text[: text.index("Configuration and environment")].lower()
    assert "mean return of 20 evaluation episodes" in told
    assert [word for word in ("proxy", "gold", "prompt", "tokens", "reply", "replies") if word in told] == []
    assert "What is missing" not in text


def test_a_preference_run_is_told_by_its_steps(capsys, tmp_path):
    path, page = report(capsys, synthetic_kinds.write_preference(tmp_path / "dpo"))
    expected = {"report", "learning_curves", "frontier", "components", "dashboard"}
    assert {file.stem for file in path.parent.iterdir()} == expected
    text = " ".join(page.text.split())
    assert "Gold rose from 0.55 to 0.80" in text
    assert "step 500" in text
    assert "iteration 500" not in text
    assert "score" not in text[text.index("One reply through training") : text.index("Training of the policy")]


def test_a_run_of_the_version_before_is_reported(capsys, tmp_path):
    run = synthetic.write_policy(tmp_path / "old", iterations=40)
    (run / "run.json").unlink()
    path, page = report(capsys, run)
    assert {file.stem for file in path.parent.iterdir()} == {"report", "overoptimization", "components", "dashboard"}
    assert "What is missing" not in page.text
    assert "Score" in page.text


def test_kinds_side_by_side_have_a_dashboard_each(capsys, tmp_path):
    runs = [
        synthetic_kinds.write_control(tmp_path / "trpo"),
        synthetic.write_policy(tmp_path / "ppo", iterations=30),
        synthetic_kinds.write_preference(tmp_path / "dpo"),
    ]
    path, _ = report(capsys, *runs, "--out", tmp_path / "out")
    files = {file.stem for file in path.parent.iterdir() if file.suffix == ".png"}
    assert {file for file in files if file.startswith("dashboard")} == {
        "dashboard-CartPole-v1",
        "dashboard-Assistant",
        "dashboard-Assistant-preference-pairs",
    }
    assert {file for file in files if file.endswith("overoptimization")} == {"ppo-overoptimization"}


@pytest.mark.parametrize(
    ("write", "options", "expected"),
    [
        ("write_sft", {"done": False}, ["reached a held-out perplexity", "not finished (there is no DONE file)"]),
        ("write_reward", {"ceiling": None}, ["of held-out pairs as the annotators did.", "Calibration error"]),
        (
            "write_policy",
            {"gold": False, "iterations": 20, "done": False},
            ["no gold reward", "cannot be told from its figures", "its figures end at iteration 20"],
        ),
    ],
)
def test_a_run_with_missing_pieces_is_reported_and_they_are_named(capsys, tmp_path, write, options, expected):
    _, page = report(capsys, getattr(synthetic, write)(tmp_path / "run", **options))
    text = " ".join(page.text.split())
    assert [phrase for phrase in expected if phrase not in text] == []


def test_a_pipeline_whose_policy_has_not_begun_is_reported(capsys, tmp_path):
    synthetic.write_sft(tmp_path / "p" / "sft")
    _, page = report(capsys, tmp_path / "p")
    assert "p has no stage “policy”." in page.text


def test_a_run_that_has_only_started_is_reported(capsys, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("seed_everything: 1\n")
    _, page = report(capsys, tmp_path / "new")
    assert "new: no metrics yet." in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["a", "--color"], "unrecognized arguments: --color"),
        (["a", "--ou", "b"], "unrecognized arguments: --ou b"),
        (["nowhere/a"], "nowhere/a: no such directory"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        main([str(synthetic.write_sft(tmp_path / "sft")), "--out", str(tmp_path / "file")])


def test_help_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys\nfrom rlhf_lightning.commands.report import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "sys.exit(bool({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--out DIR" in result.stdout
