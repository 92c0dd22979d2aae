"""Command lines as the agents of W&B's sweeps write them."""

import pytest

from rlhf_lightning.cli.words import as_parsed
from tests.cli_runs import FAKES, fit, toy


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["--a=None", "--b", "None"], ["--a=null", "--b", "null"]),
        (["--name=None-1", "--flag=True", "--lr=1e-05"], ["--name=None-1", "--flag=True", "--lr=1e-05"]),
        (["--betas=(0.9, 0.95)", "--sizes=[1, 2]"], ["--betas=[0.9, 0.95]", "--sizes=[1, 2]"]),
        (["--a={'b': None, 'c': True, 'd': \"it's\"}"], ['--a={"b": null, "c": true, "d": "it\'s"}']),
        # YAML, JSON and texts are none of Python's
        (["--a={b: 1}", '--c={"d": null}', "--e=[x, y]"], ["--a={b: 1}", '--c={"d": null}', "--e=[x, y]"]),
        (["--count", "-1", "-c", "None.yaml", "word"], ["--count", "-1", "-c", "None.yaml", "word"]),
    ],
)
def test_as_parsed_brings_python_s_values_to_json(words, parsed):
    assert as_parsed(words) == parsed


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["--a.b=1", "--a=X"], ["--a=X", "--a.b=1"]),
        (["--a.init_args.b", "1", "2", "--a", "X"], ["--a", "X", "--a.init_args.b", "1", "2"]),
        (["--a.init_args.b=1", "--z=0", "--a.class_path=X"], ["--z=0", "--a.class_path=X", "--a.init_args.b=1"]),
        # three levels in the worst order, and one that is in order already
        (["--a.b.c=1", "--a.b=Y", "--a=X"], ["--a=X", "--a.b=Y", "--a.b.c=1"]),
        (["--a=X", "--a.b.c=1", "--a.b=Y"], ["--a=X", "--a.b=Y", "--a.b.c=1"]),
        # items of a list, each followed by its arguments
        (["--a+=X", "--a.b=1", "--a+=Y", "--a.b=2"], ["--a+=X", "--a.b=1", "--a+=Y", "--a.b=2"]),
        (["--ab.c=1", "--a=X"], ["--ab.c=1", "--a=X"]),
    ],
)
def test_as_parsed_puts_a_class_before_its_arguments(words, parsed):
    assert as_parsed(words) == parsed


@pytest.mark.parametrize("first", ["class", "argument", "both in one value"])
def test_fit_takes_class_and_arguments_in_any_order(first, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [f"--model.init_args.optimization={FAKES}.Options", "--model.init_args.optimization.init_args.lr=0.5"]
    if first == "argument":
        given.reverse()
    elif first == "both in one value":
        given = [f"--model.init_args.optimization={ {'class_path': f'{FAKES}.Options', 'init_args': {'lr': 0.5}} }"]
    assert fit(*toy(), *given, "--data.init_args.sizes=None", "--print_config") == 0
    shown = capsys.readouterr().out
    assert "lr: 0.5" in shown
    assert "sizes: null" in shown
