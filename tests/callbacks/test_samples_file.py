import json

from rlhf_lightning.callbacks.samples_file import SamplesFile
from tests.callbacks.test_metrics_file import trainer_at


def sample(iteration, row=0, **more):
    return {"iteration": iteration, "row": row, "prompt": "p", "response": "r", "score": 1.0, **more}


def write(folder, samples, **at):
    callback, trainer = SamplesFile(), trainer_at(folder, **at)
    callback.on_row(trainer, None, {"iteration": 0})
    callback.on_train_start(trainer, None)
    for batch in samples:
        callback.on_samples(trainer, None, batch)
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]


def test_samples_file_holds_one_sample_a_line(tmp_path):
    prompt = [{"role": "user", "content": "zwei\nZeilen\u2028und mehr"}]
    written = write(tmp_path, [[sample(1, prompt=prompt), sample(1, row=1, gold=None)], [sample(2)]])
    assert [(s["iteration"], s["row"]) for s in written] == [(1, 0), (1, 1), (2, 0)]
    assert written[0]["prompt"] == prompt
    assert written[1]["gold"] is None


def test_samples_file_is_strict_json(tmp_path):
    assert write(tmp_path, [[sample(1, score=float("nan"), kl=float("inf"))]])[0]["score"] is None
    assert "NaN" not in (tmp_path / "samples.jsonl").read_text()


def test_samples_file_resume_drops_samples_after_the_checkpoint(tmp_path):
    write(tmp_path, [[sample(n, row=r) for r in range(2)] for n in (0, 2, 4)])
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write('{"iteration": 2, "ro')
    written = write(tmp_path, [[sample(3)]], epoch=2)
    assert [(s["iteration"], s["row"]) for s in written] == [(0, 0), (0, 1), (2, 0), (2, 1), (3, 0)]


def test_samples_file_fresh_run_replaces_the_file(tmp_path):
    write(tmp_path, [[sample(0)], [sample(1)]])
    assert [s["iteration"] for s in write(tmp_path, [[sample(0)]])] == [0]


def test_samples_file_remembers_the_axis_in_checkpoints(tmp_path):
    first, second = SamplesFile(), SamplesFile()
    first.on_row(None, None, {"step": 4, "loss": 1.0})
    second.load_state_dict(first.state_dict())
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(sample(n)) + "\n" for n in (2, 4, 6)))
    second.on_train_start(trainer_at(tmp_path, epoch=1, step=4), None)
    kept = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in kept] == [2, 4]


def test_samples_file_fills_a_table_where_a_logger_has_them(tmp_path):
    class Tables:
        def __init__(self):
            self.calls = []

        def log_table(self, **call):
            self.calls.append(call)

    callback, trainer, logger = SamplesFile(), trainer_at(tmp_path), Tables()
    trainer.loggers = [object(), logger]
    callback.on_train_start(trainer, None)
    callback.on_samples(trainer, None, [sample(3, prompt=[{"role": "user", "content": "hi"}]), sample(3, row=1)])
    (call,) = logger.calls
    assert call["key"] == "responses"
    assert call["step"] == 3
    assert call["columns"] == ["iteration", "row", "prompt", "response", "score"]
    assert call["data"][0] == [3, 0, '[{"role": "user", "content": "hi"}]', "r", 1.0]
