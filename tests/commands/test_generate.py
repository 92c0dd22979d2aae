import gzip
import io
import json
import sys

import pytest
import tiny_models
import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.models.language.markup import prompt_ids
from rlhf_lightning.models.language.policy import LanguagePolicy


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished pipeline with a policy and a reward model, and a lone policy that knows more stop tokens."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_models.policy("llama").save(folder / "pipeline" / "policy" / "export")
    tiny_models.policy("llama", seed=1).save(folder / "pipeline" / "sft" / "export")
    tiny_models.reward_model("llama").save(folder / "pipeline" / "reward" / "export")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def generate(root, capsys, monkeypatch):
    """Run the command; its exit status, what it printed and what it complained about."""

    def run(*arguments, model="pipeline", stdin=None):
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        capsys.readouterr()
        status = main(["generate", model, "--max_new_tokens", "6", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def greedy_by_hand(prompt, length=6):
    """Most probable continuation, one whole forward pass per token."""
    policy = tiny_models.policy("llama").eval()
    ids = prompt_ids(prompt, policy.tokenizer)
    said = []
    while len(said) < length:
        token = policy.model(torch.tensor([ids + said])).logits[0, -1].argmax().item()
        said.append(token)
        if token == 1:
            break
    return policy.tokenizer.decode(said, skip_special_tokens=True)


def test_prompts_as_arguments_are_answered_in_order(generate):
    status, out, err = generate("the cat sees", "a dog")
    assert (status, err) == (0, "")
    asked = [line for line in out.splitlines() if line.startswith("> ")]
    assert asked == ["> the cat sees", "> a dog"]
    assert len(out.split("\n\n")) == 3


def test_greedy_answers_are_the_most_probable_tokens_of_the_policy(generate, tmp_path):
    assert generate("the cat sees", "--greedy", "--out", tmp_path / "a.jsonl")[0] == 0
    prompt = [{"role": "user", "content": "the cat sees"}]
    assert records(tmp_path / "a.jsonl") == [{"prompt": prompt, "response": greedy_by_hand(prompt)}]


def test_raw_continues_the_text_without_the_template(generate, tmp_path):
    assert generate("the cat sees", "--greedy", "--raw", "--out", tmp_path / "a.jsonl")[0] == 0
    assert records(tmp_path / "a.jsonl") == [{"prompt": "the cat sees", "response": greedy_by_hand("the cat sees")}]


def test_options_may_stand_anywhere(generate, root, capsys, monkeypatch):
    expected = generate("the cat", "a dog", "--seed", "3")
    assert generate("--seed", "3", "the cat", "a dog") == expected
    assert generate("the cat", "--seed", "3", "a dog") == expected


def test_answers_do_not_depend_on_the_batch_size(generate):
    prompts = ["the cat", "a", "the red dog likes a green cow", "cow", "blue"]
    expected = generate(*prompts, "--samples", "2")
    assert generate(*prompts, "--samples", "2", "--batch_size", "1") == expected
    assert generate(*prompts, "--samples", "2", "--batch_size", "2") == expected


def test_samples_of_a_prompt_stand_together_and_differ(generate, tmp_path):
    assert generate("the cat", "a dog", "--samples", "4", "--out", tmp_path / "a.jsonl")[0] == 0
    found = records(tmp_path / "a.jsonl")
    assert [r["prompt"][0]["content"] for r in found] == ["the cat"] * 4 + ["a dog"] * 4
    assert len({r["response"] for r in found[:4]}) > 1


def test_seed_and_temperature_change_the_answers_and_nothing_else_does(generate):
    plain = generate("the cat", "--samples", "8")
    assert generate("the cat", "--samples", "8") == plain
    assert generate("the cat", "--samples", "8", "--seed", "1") != plain
    assert generate("the cat", "--samples", "8", "--seed", "-1") != plain
    assert generate("the cat", "--samples", "8", "--temperature", "3") != plain
    cold = generate("the cat", "--samples", "3", "--temperature", "0.001")
    assert cold == generate("the cat", "--samples", "3", "--greedy")


def test_prompts_from_standard_input(generate):
    expected = generate("the cat", "a dog")
    assert generate(stdin="the cat\na dog\n") == expected
    assert generate("--file", "-", stdin="the cat\na dog") == expected
    assert generate(stdin='{"prompt": "the cat"}\n{"prompt": "a dog"}\n') == expected


def test_prompts_from_files(generate, tmp_path):
    expected = generate("the cat", "a dog")
    (tmp_path / "p.txt").write_text("the cat\na dog\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": [{"role": "user", "content": "a dog"}]}\n')
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "the cat"}\n{"prompt": "a dog"}\n', mtime=0))
    for name in ("p.txt", "p.jsonl", "p.jsonl.gz"):
        assert generate("--file", tmp_path / name) == expected


def test_conversation_goes_through_the_template_even_with_raw(generate, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": [{"role": "user", "content": "a dog"}]}\n')
    assert generate("--file", tmp_path / "p.jsonl", "--raw") == generate("a dog")


@pytest.mark.parametrize("model", ["pipeline/policy", "pipeline/policy/export"])
def test_model_is_a_pipeline_a_run_or_a_folder(generate, model):
    assert generate("the cat", model=model) == generate("the cat")
    assert generate("the cat", "--samples", "8", model="pipeline/sft") != generate("the cat", "--samples", "8")


def test_out_is_whole_and_its_folder_is_made(generate, tmp_path):
    target = tmp_path / "new" / "folder" / "answers.jsonl"
    status, out, err = generate("the cat", "--out", target)
    assert (status, out, err) == (0, f"wrote 1 responses to {target}\n", "")
    assert [file.name for file in target.parent.iterdir()] == ["answers.jsonl"]


def test_failure_leaves_the_old_file_as_it_was(root, generate, tmp_path):
    broken = tiny_models.policy("llama")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[3] = torch.nan
    broken.save(tmp_path / "broken")
    target = tmp_path / "answers.jsonl"
    target.write_text("before\n")
    status, _, err = generate("the cat", "--out", target, model=str(tmp_path / "broken"))
    assert status == 2
    assert err == "error: the LlamaForCausalLM gives numbers that are not finite; expected weights that are\n"
    assert target.read_text() == "before\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl", "broken"]


def test_numbers_that_are_not_finite_are_one_line_with_the_prompt(generate, tmp_path, capsys):
    broken = tiny_models.policy("llama", tie_word_embeddings=False)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[14] = torch.nan  # the word "a"
    broken.save(tmp_path / "broken")
    status, out, err = generate("the cat", "a", model=str(tmp_path / "broken"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "probabilities are not finite for the prompt [{'role': 'user', 'content': 'a'}]" in err


def test_prompts_that_are_too_long_are_counted_on_the_error_stream(generate):
    status, out, err = generate("the " * 40, "a dog")
    assert status == 0
    assert len([line for line in out.splitlines() if line.startswith("> ")]) == 2
    assert err == "1 of 2 prompts are longer than 26 tokens and keep their last ones\n"


def test_every_stop_token_of_the_generation_config_ends_an_answer(tmp_path, generate):
    policy = tiny_models.policy("llama")
    policy.model.generation_config.eos_token_id = [1, *range(5, 15)]
    policy.save(tmp_path / "stops")
    assert generate("the cat", "--samples", "5", "--out", tmp_path / "a.jsonl", model=str(tmp_path / "stops"))[0] == 0
    assert all(len(r["response"].split()) <= 1 for r in records(tmp_path / "a.jsonl"))


def test_special_tokens_are_read_and_shown_when_asked_for(tmp_path, generate):
    words = tiny_models.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["the", "likes"]})
    policy = tiny_models.policy("llama", words=words)
    policy.save(tmp_path / "special")
    model = str(tmp_path / "special")
    arguments = ("red the cat", "--raw", "--greedy", "--out", tmp_path / "a.jsonl")
    assert generate(*arguments, "--special_tokens", model=model)[0] == 0
    ids = torch.tensor([[5, 13, 8]])
    own = policy.model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=0)[0, 3:]
    said = words.decode(own).removesuffix("</s>").strip()
    assert records(tmp_path / "a.jsonl")[0]["response"].strip() == said
    assert any(word in said.split() for word in ("the", "likes"))
    assert generate(*arguments, model=model)[0] == 0
    answer = records(tmp_path / "a.jsonl")[0]["response"].split()
    assert not {"the", "likes"}.intersection(answer)


def test_model_without_pad_token_answers_alike(tmp_path, generate):
    words = tiny_models.tokenizer(pad=None)
    LanguagePolicy(tiny_models.model("llama"), words).save(tmp_path / "nopad")
    status, out, err = generate("the cat", "a red dog likes", model=str(tmp_path / "nopad"))
    assert (status, out.replace("<pad> ", ""), err) == generate("the cat", "a red dog likes")  # a word like any other


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "<stream>: the file is empty; expected at least one prompt"),
        (("",), "one of the prompts is empty"),
        (("a", "  "), "one of the prompts is empty"),
        (("a", "--file", "b.txt"), "both as arguments and by --file"),
        (("--file", "nothing.txt"), "nothing.txt: no such file"),
        (("a", "--temperature", "0"), "temperature must be a number above 0, got 0.0"),
        (("a", "--temperature", "nan"), "temperature must be a number above 0, got nan"),
        (("a", "--temperature", "warm"), "argument --temperature: invalid float value: 'warm'"),
        (("a", "--samples", "0"), "argument --samples: invalid positive value: '0'"),
        (("a", "--max_new_tokens", "x"), "argument --max_new_tokens: invalid positive value: 'x'"),
        (("a", "--max_new_tokens", "32"), "no room for a prompt: 0 tokens"),
        (("a", "--seed", "1.5"), "argument --seed: invalid int value: '1.5'"),
        (("a", "--sample", "2"), "unrecognized arguments: --sample"),
        (("a", "--out", "empty"), "argument --out: empty is a directory"),
        (("a", "--out", "pipeline/policy/export/config.json/x"), "cannot be written"),
    ],
)
def test_mistakes_are_one_line(generate, arguments, line):
    status, out, err = generate(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("runs/nothing", "runs/nothing does not exist; expected a folder with a model"),
        ("nothing", "nothing does not exist"),
        ("empty", "empty holds no exported model"),
        ("pipeline/reward", "is a reward model; expected a language model"),
    ],
)
def test_model_that_is_none_is_one_line(generate, model, line):
    status, out, err = generate("a", model=model)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_missing_model_is_one_line(capsys):
    assert main(["generate"]) == 2
    err = capsys.readouterr().err
    assert "the following arguments are required: model;" in err
    assert err.count("\n") == 1
