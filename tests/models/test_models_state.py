import torch
from safetensors.torch import load_file
from torch import nn

from rlhf_lightning.models.state import fingerprint, frozen_copy, save_weights, seeded
from rlhf_lightning.proofs.same_run import run_seed_is


def drawn(seed):
    with seeded(seed):
        return torch.rand(3).tolist()


def test_seeded_draws_with_its_seed_and_restores_the_generator():
    before = torch.random.get_rng_state()
    assert drawn(3) == torch.rand(3, generator=torch.Generator().manual_seed(3)).tolist()
    assert drawn(3) != drawn(4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeded_without_a_seed_is_that_of_the_run():
    with run_seed_is(7):
        assert drawn(None) == drawn(7) != drawn(0)


def test_a_frozen_copy_shares_what_does_not_train_and_nothing_else():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    copied = frozen_copy(network)
    assert fingerprint(copied) == fingerprint(network)
    assert copied.bias is network.bias
    assert not copied.weight.requires_grad
    with torch.no_grad():
        network.weight += 1
    assert fingerprint(copied) != fingerprint(network)


def test_saved_weights_are_read_back_from_a_new_folder(tmp_path):
    network = nn.Linear(3, 2)
    save_weights(network, tmp_path / "a" / "b" / "weights.safetensors")
    other = nn.Linear(3, 2)
    other.load_state_dict(load_file(tmp_path / "a" / "b" / "weights.safetensors"))
    assert fingerprint(other) == fingerprint(network)
