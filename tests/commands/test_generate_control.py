import pytest

from rlhf_lightning.__main__ import main

CONFIG = """\
data: {class_path: rlhf_lightning.data.environments.EnvironmentDataModule}
task: {class_path: rlhf_lightning.Control, init_args: {environment: Acrobot-v1}}
"""


@pytest.mark.parametrize("model", ["acrobot", "acrobot/export"])
def test_a_control_run_writes_no_text_and_says_so_in_one_line(tmp_path, monkeypatch, capsys, model):
    (tmp_path / "acrobot" / "export").mkdir(parents=True)
    (tmp_path / "acrobot" / "config.yaml").write_text(CONFIG)
    (tmp_path / "acrobot" / "run.json").write_text('{"kind": "control", "algorithm": "PPO"}')
    monkeypatch.chdir(tmp_path)
    assert main(["generate", model, "hello"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {model} is a policy for Acrobot-v1, which writes no text; expected a language policy\n"
