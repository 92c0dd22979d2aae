import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.multiprocessing.reductions import StorageWeakRef

from rlhf_lightning.ops.logprobs import (
    entropy_of,
    exact_kl,
    tempered_log_softmax,
    token_kl,
    token_statistics,
)

NAN, INF = float("nan"), math.inf
N, H, J, V = 10, 4, 3, 11
CHUNKS = [1, 3, 5, 9, 10, 64]

seeds = st.integers(0, 2**32 - 1)
temperatures = st.floats(0.2, 5)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_head(width: int, seed: int, *, dtype: torch.dtype = torch.float64) -> nn.Linear:
    head = nn.Linear(width, V, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(random(V, width, seed=seed))
        head.bias.copy_(random(V, seed=seed + 1))
    return head


def log_softmax_by_loop(logits: list[float], temperature: float) -> list[float]:
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    total = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - total for x in scaled]


# tempered_log_softmax


def test_tempered_log_softmax_by_hand():
    logits = torch.tensor([0.0, math.log(3)])
    # 1 : 3 at temperature 1, 1 : 9 at 1/2
    assert tempered_log_softmax(logits, temperature=1.0).exp().tolist() == pytest.approx([0.25, 0.75])
    assert tempered_log_softmax(logits, temperature=0.5).exp().tolist() == pytest.approx([0.1, 0.9])


@given(seeds, temperatures)
def test_tempered_log_softmax_against_a_loop(seed, temperature):
    logits = 5 * random(3, V, seed=seed)
    expected = [log_softmax_by_loop(row, temperature) for row in logits.tolist()]
    torch.testing.assert_close(
        tempered_log_softmax(logits, temperature=temperature), torch.tensor(expected, dtype=torch.float64)
    )


def test_tempered_log_softmax_survives_large_logits():
    logprobs = tempered_log_softmax(torch.tensor([1e4, 1e4, -1e4]), temperature=0.5)
    assert logprobs.tolist() == pytest.approx([-math.log(2), -math.log(2), -4e4 - math.log(2)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tempered_log_softmax_of_half_precision_is_computed_in_float32(dtype):
    logits = (10 * random(5, 1000, seed=0)).to(dtype)
    logprobs = tempered_log_softmax(logits, temperature=0.7)
    assert logprobs.dtype == torch.float32
    # log-probabilities down to −100, of which float32 rounds off 4e-6
    expected = tempered_log_softmax(logits.double(), temperature=0.7)
    torch.testing.assert_close(logprobs.double(), expected, atol=2e-5, rtol=0)


def test_tempered_log_softmax_keeps_float64():
    assert tempered_log_softmax(random(V, seed=0), temperature=1.0).dtype == torch.float64


def test_tempered_log_softmax_of_an_impossible_token():
    logits = torch.tensor([0.0, -INF, math.log(3)], requires_grad=True)
    logprobs = tempered_log_softmax(logits, temperature=1.0)
    assert logprobs[1] == -INF
    assert logprobs[[0, 2]].exp().tolist() == pytest.approx([0.25, 0.75])
    logprobs[2].backward()
    # ∂ log p₂/∂x = 1{2} − p
    assert logits.grad.tolist() == pytest.approx([-0.25, 0, 0.25])


# entropy_of


def test_entropy_of_by_hand():
    # ½ ln 2 + 2 · ¼ ln 4 = 1.5 ln 2
    logprobs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()
    assert entropy_of(logprobs).tolist() == pytest.approx([1.5 * math.log(2), 0])
    assert entropy_of(torch.full((1000,), 1e-3).log()).item() == pytest.approx(math.log(1000))


@given(seeds, temperatures)
def test_entropy_of_against_torch_distributions(seed, temperature):
    logits = 3 * random(4, V, seed=seed)
    entropy = entropy_of(tempered_log_softmax(logits, temperature=temperature))
    torch.testing.assert_close(entropy, Categorical(logits=logits / temperature).entropy())
    assert entropy.min() >= 0
    assert entropy.max() <= math.log(V) + 1e-12


def test_entropy_of_gradient_is_that_without_the_impossible_tokens():
    logits = random(4, seed=0)
    padded = torch.cat([logits, torch.tensor([-INF, -INF], dtype=torch.float64)])
    gradients = []
    for x in (logits, padded):
        x.requires_grad_()
        entropy_of(tempered_log_softmax(x, temperature=0.8)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], torch.cat([gradients[0], torch.zeros(2, dtype=torch.float64)]))


def test_entropy_of_gradient_against_finite_differences():
    logits = random(2, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: entropy_of(tempered_log_softmax(x, temperature=1.3)), logits)


def test_entropy_and_kl_do_not_hide_nan():
    broken, sound = torch.full((3,), NAN), torch.full((3,), 1 / 3).log()
    assert entropy_of(broken).isnan()
    assert exact_kl(broken, sound).isnan()
    assert exact_kl(sound, broken).isnan()


# exact_kl


def test_exact_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    # ½ ln 2 + ½ ln ⅔ = ½ ln 4/3; the other way ¼ ln ½ + ¾ ln 3/2
    assert exact_kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert exact_kl(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


@given(seeds)
def test_exact_kl_against_torch_distributions(seed):
    p, q = 2 * random(4, V, seed=seed), 2 * random(4, V, seed=seed + 1)
    kl = exact_kl(p.log_softmax(-1), q.log_softmax(-1))
    torch.testing.assert_close(kl, kl_divergence(Categorical(logits=p), Categorical(logits=q)))
    assert kl.min() >= 0


def test_exact_kl_of_impossible_tokens():
    even, first = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([1.0, 0.0, 0.0]).log()
    assert exact_kl(first, even).item() == pytest.approx(math.log(2))
    assert exact_kl(even, even).item() == 0
    assert exact_kl(even, first).item() == INF


def test_exact_kl_gradients_by_formula_also_with_impossible_tokens():
    # by the logits: ∂/∂x = p (Δ − KL), ∂/∂y = q − p; 0 for tokens that neither distribution allows
    x = torch.tensor([0.3, -1.0, 2.0, -INF], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1.0, 0.0, 0.5, -INF], dtype=torch.float64, requires_grad=True)
    kl = exact_kl(x.log_softmax(-1), y.log_softmax(-1))
    kl.backward()
    with torch.no_grad():
        p, q = x.softmax(-1), y.softmax(-1)
        delta = torch.tensor([*(p[:3] / q[:3]).log().tolist(), 0.0], dtype=torch.float64)
        torch.testing.assert_close(x.grad, p * (delta - kl))
        torch.testing.assert_close(y.grad, q - p)


def test_exact_kl_and_its_gradient_vanish_at_equal_distributions():
    x = random(3, V, seed=1, dtype=torch.float32).requires_grad_()
    kl = exact_kl(x.log_softmax(-1), x.detach().log_softmax(-1))
    kl.sum().backward()
    assert torch.equal(kl, torch.zeros(3))
    torch.testing.assert_close(x.grad, torch.zeros(3, V), atol=1e-7, rtol=0)


@pytest.mark.parametrize("distance", [0.1, 0.01, 0.001])
def test_exact_kl_in_float32_is_good_to_a_millionth_of_a_nat(distance):
    x = 3 * random(8, 20_000, seed=0)
    y = x + distance * random(8, 20_000, seed=1)
    exact = exact_kl(x.log_softmax(-1), y.log_softmax(-1))
    single = exact_kl(x.float().log_softmax(-1), y.float().log_softmax(-1))
    assert (single - exact).abs().max() < 2e-6


# token_statistics


def statistics_inputs(*, dtype: torch.dtype = torch.float64):
    hidden = random(N, H, seed=10, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(11))
    return hidden, targets, random_head(H, 12, dtype=dtype)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_statistics_against_a_loop(chunk_tokens, temperature):
    hidden, targets, head = statistics_inputs()
    logprobs, entropy = token_statistics(hidden, targets, head=head, temperature=temperature, chunk_tokens=chunk_tokens)
    rows = [log_softmax_by_loop(row, temperature) for row in head(hidden).tolist()]
    assert logprobs.tolist() == pytest.approx([row[t] for row, t in zip(rows, targets.tolist(), strict=True)])
    assert entropy.tolist() == pytest.approx([-math.fsum(math.exp(x) * x for x in row) for row in rows])


@pytest.mark.parametrize("used", ["both", "logprobs", "entropy"])
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_token_statistics_gradients_are_those_through_full_logits(chunk_tokens, used):
    hidden, targets, head = statistics_inputs()
    leaves = [hidden, head.weight, head.bias]
    a, b = random(N, seed=20), random(N, seed=21)

    def loss(logprobs, entropy):
        return {"both": a * logprobs + b * entropy, "logprobs": a * logprobs, "entropy": b * entropy}[used].sum()

    distribution = Categorical(logits=head(hidden) / 0.7)
    expected = torch.autograd.grad(loss(distribution.log_prob(targets), distribution.entropy()), leaves)
    found = token_statistics(hidden, targets, head=head, temperature=0.7, chunk_tokens=chunk_tokens)
    gradients = torch.autograd.grad(loss(*found), leaves)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_token_statistics_through_a_frozen_trunk(chunk_tokens):
    hidden, targets, head = statistics_inputs()
    logprobs, _ = token_statistics(hidden.detach(), targets, head=head, temperature=1.0, chunk_tokens=chunk_tokens)
    (gradient,) = torch.autograd.grad(logprobs.sum(), head.bias)
    torch.testing.assert_close(gradient, torch.bincount(targets, minlength=V) - head(hidden).softmax(-1).sum(0))


@pytest.mark.parametrize("chunk_tokens", [2, 64])
def test_token_statistics_of_no_positions(chunk_tokens):
    hidden, targets, head = statistics_inputs()
    logprobs, entropy = token_statistics(hidden[:0], targets[:0], head=head, temperature=1.0, chunk_tokens=chunk_tokens)
    assert logprobs.shape == entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.equal(head.weight.grad, torch.zeros(V, H, dtype=torch.float64))


@pytest.mark.parametrize("chunk_tokens", [3, 64])
def test_token_statistics_with_tokens_that_a_head_forbids(chunk_tokens):
    hidden, targets, head = statistics_inputs()
    allowed = torch.arange(V) < 7
    targets = targets % 7
    logprobs, entropy = token_statistics(
        hidden,
        targets,
        head=lambda h: torch.where(allowed, head(h), -INF),
        temperature=1.0,
        chunk_tokens=chunk_tokens,
    )
    distribution = Categorical(logits=head(hidden)[:, :7])
    torch.testing.assert_close(logprobs, distribution.log_prob(targets))
    torch.testing.assert_close(entropy, distribution.entropy())
    expected = torch.autograd.grad((distribution.log_prob(targets) + distribution.entropy()).sum(), hidden)
    torch.testing.assert_close(torch.autograd.grad((logprobs + entropy).sum(), hidden), expected)


def test_token_statistics_treat_every_position_on_its_own():
    hidden, targets, head = statistics_inputs()
    broken = hidden.detach().clone()
    broken[4] = NAN
    options = {"head": head, "temperature": 1.0, "chunk_tokens": 3}
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    kept = torch.arange(N) != 4
    for whole, part, permuted in zip(
        token_statistics(hidden, targets, **options),
        token_statistics(broken, targets, **options),
        token_statistics(hidden[order], targets[order], **options),
        strict=True,
    ):
        assert part[4].isnan()
        torch.testing.assert_close(part[kept], whole[kept])
        torch.testing.assert_close(permuted, whole[order])


@pytest.mark.parametrize("chunk_tokens", [3, 64])
def test_token_statistics_of_bfloat16_lose_only_the_rounding_of_the_logits(chunk_tokens):
    hidden, targets, head = statistics_inputs(dtype=torch.bfloat16)
    logprobs, entropy = token_statistics(hidden, targets, head=head, temperature=0.7, chunk_tokens=chunk_tokens)
    distribution = Categorical(logits=head(hidden).double() / 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), distribution.log_prob(targets), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), distribution.entropy(), atol=1e-5, rtol=1e-5)
    logprobs.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert hidden.grad.isfinite().all()


def test_token_statistics_under_autocast_are_the_same_in_chunks():
    hidden, targets, head = statistics_inputs(dtype=torch.float32)
    results = []
    for chunk_tokens in (3, 64):
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, entropy = token_statistics(hidden, targets, head=head, temperature=1.0, chunk_tokens=chunk_tokens)
        results.append([logprobs, entropy, *torch.autograd.grad((logprobs + entropy).sum(), [hidden])])
    for chunked, whole in zip(*results, strict=True):
        assert chunked.dtype == torch.float32
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-5)


def test_token_statistics_without_gradient_in_chunks():
    hidden, targets, head = statistics_inputs()
    with torch.no_grad():
        logprobs, _ = token_statistics(hidden, targets, head=head, temperature=1.0, chunk_tokens=4)
    assert not logprobs.requires_grad
    torch.testing.assert_close(logprobs, Categorical(logits=head(hidden)).log_prob(targets).detach())


# token_kl


def kl_inputs():
    hidden = random(N, H, seed=30).requires_grad_()
    other_hidden = random(N, J, seed=31).requires_grad_()
    return hidden, other_hidden, random_head(H, 32), random_head(J, 34)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_kl_and_gradients_are_those_through_full_logits(chunk_tokens, temperature):
    hidden, other_hidden, head, other_head = kl_inputs()
    leaves = [hidden, other_hidden, *head.parameters(), *other_head.parameters()]
    weights = random(N, seed=36)
    expected = kl_divergence(
        Categorical(logits=head(hidden) / temperature), Categorical(logits=other_head(other_hidden) / temperature)
    )
    kl = token_kl(
        hidden, other_hidden, head=head, other_head=other_head, temperature=temperature, chunk_tokens=chunk_tokens
    )
    torch.testing.assert_close(kl, expected)
    gradients = torch.autograd.grad((weights * kl).sum(), leaves)
    for gradient, other in zip(gradients, torch.autograd.grad((weights * expected).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, other)


def test_token_kl_by_hand():
    # identity heads on log-probabilities: ½ ln 4/3, and 0 for equal rows
    p, q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log(), torch.tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    for chunk_tokens in (1, 2):
        kl = token_kl(p, q, head=nn.Identity(), other_head=nn.Identity(), temperature=1.0, chunk_tokens=chunk_tokens)
        assert kl.tolist() == pytest.approx([0.5 * math.log(4 / 3), 0])


@pytest.mark.parametrize("chunk_tokens", [3, 64])
def test_token_kl_of_a_distribution_to_itself_is_exactly_zero(chunk_tokens):
    hidden, _, head, _ = kl_inputs()
    kl = token_kl(hidden, hidden, head=head, other_head=head, temperature=0.7, chunk_tokens=chunk_tokens)
    assert torch.equal(kl, torch.zeros(N, dtype=torch.float64))


@pytest.mark.parametrize("chunk_tokens", [3, 64])
def test_token_kl_leaves_a_frozen_reference_alone(chunk_tokens):
    hidden, other_hidden, head, other_head = kl_inputs()
    other_head.requires_grad_(False)
    token_kl(
        hidden,
        other_hidden.detach(),
        head=head,
        other_head=other_head,
        temperature=1.0,
        chunk_tokens=chunk_tokens,
    ).sum().backward()
    assert hidden.grad.abs().min() > 0
    assert other_hidden.grad is None
    assert other_head.weight.grad is None


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_token_kl_can_be_differentiated_twice_for_the_fisher_matrix(chunk_tokens):
    # at equal distributions the Hessian by the bias is Σ (diag p − p pᵀ)/T²: the Fisher information
    hidden, _, head, _ = kl_inputs()
    old = random_head(H, 32)
    kl = token_kl(hidden, hidden.detach(), head=head, other_head=old, temperature=0.7, chunk_tokens=chunk_tokens).sum()
    (gradient,) = torch.autograd.grad(kl, head.bias, create_graph=True)
    direction = random(V, seed=40)
    (product,) = torch.autograd.grad(gradient @ direction, head.bias)
    p = (head(hidden) / 0.7).softmax(-1).detach()
    fisher = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).sum(0) / 0.7**2
    torch.testing.assert_close(product, fisher @ direction)
    torch.testing.assert_close(gradient.detach(), torch.zeros_like(gradient), atol=1e-12, rtol=0)


# memory: N = 60 positions, V = 50 tokens, chunks of 8


class CountingHead(nn.Module):
    """A head that remembers its calls, and whether their logits are still held by anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 50)
        self.rows: list[int] = []
        self.logits: list[StorageWeakRef] = []
        self.most_held = 0

    def forward(self, hidden):
        logits = self.linear(hidden)
        self.rows.append(len(hidden))
        self.logits.append(StorageWeakRef(logits.untyped_storage()))
        self.most_held = max(self.most_held, self.held())
        return logits

    def held(self) -> int:
        return sum(not storage.expired() for storage in self.logits)


def statistics_of(head: CountingHead, chunk_tokens: int):
    targets = torch.arange(60) % 50
    hidden = random(60, 4, seed=0, dtype=torch.float32).requires_grad_()
    return sum(token_statistics(hidden, targets, head=head, temperature=0.7, chunk_tokens=chunk_tokens))


def kl_of(head: CountingHead, chunk_tokens: int, *, both: bool = False):
    """One side asks for gradients, as against a reference, or both do."""
    hidden, other = (random(60, 4, seed=s, dtype=torch.float32) for s in (0, 1))
    hidden.requires_grad_()
    other.requires_grad_(both)
    return token_kl(hidden, other, head=head, other_head=head, temperature=0.7, chunk_tokens=chunk_tokens)


def saved_shapes(run, chunk_tokens: int) -> set[tuple[int, ...]]:
    """Shapes of everything that autograd keeps for the backward pass."""
    shapes = set()

    def keep(tensor):
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(CountingHead(4), chunk_tokens)
    return shapes


@pytest.mark.parametrize("run", [statistics_of, kl_of])
def test_chunks_keep_no_logits_for_backward(run):
    assert (60, 50) in saved_shapes(run, 60)
    assert not any(50 in shape for shape in saved_shapes(run, 8))


def test_kl_that_both_sides_differentiate_is_computed_once():
    # its derivative in one side is differentiated in the other, which keeps all logits: chunks would cost memory
    head = CountingHead(4)
    result = kl_of(head, 8, both=True)
    assert head.rows == [60, 60]
    result.sum().backward()
    assert head.rows == [60, 60]
    with torch.no_grad():
        kl_of(head, 8, both=True)
    assert max(head.rows[2:]) == 8


@pytest.mark.parametrize(("run", "calls"), [(statistics_of, 1), (kl_of, 2)])
def test_chunks_hold_the_logits_of_one_chunk_at_a_time(run, calls):
    head = CountingHead(4)
    result = run(head, 8)
    assert head.rows == [n for n in [8] * 7 + [4] for _ in range(calls)]
    assert head.held() == 0
    assert head.most_held <= calls
    head.most_held = 0
    result.sum().backward()
    assert len(head.rows) == 2 * 8 * calls
    assert max(head.rows) == 8
    assert head.held() == 0
    assert head.most_held <= calls
