"""The exported folder replaces what is there, and nothing elsewhere."""

from training_helpers import Letters, fit, ppo, rollouts

from rlhf_lightning.callbacks.export import Export


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "export").symlink_to(elsewhere)
    task = Letters()
    fit(ppo(task), rollouts(task), Export(), max_epochs=1, default_root_dir=run)
    assert (run / "export" / "config.json").is_file()
    assert not (run / "export").is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["mine.txt"]
