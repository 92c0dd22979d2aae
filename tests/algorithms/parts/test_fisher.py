"""The geometry of a policy, against dense Fisher matrices and finite differences that share no code with it."""

import math

import pytest
import torch
from bandit_oracles import action_fisher
from tiny_models import context, policy
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf_lightning.algorithms.parts.fisher import FisherOptions, PolicyGeometry
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.policy import ControlPolicy
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.models.language.lora import LoRA, add_adapters
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.tabular import OPEN, TabularPolicy
from rlhf_lightning.tasks.bandit.exact import probabilities
from rlhf_lightning.tasks.bandit.tree import as_rollout, build_tokenizer
from rlhf_lightning.types import ObservationContext, TrainBatch

# prompts and responses of a language model, no two alike in both lengths
ROWS = [
    ([5], [6, 9, 1]),
    ([5, 9, 10], [7, 1]),
    ([11, 5], [8, 8, 12, 13, 1]),
    ([6, 7, 8, 9], [10, 11]),
    ([12, 13], [1]),
]


def train_batch(context, actions, action_mask):
    """A batch of which the geometry may read nothing but the states."""
    nothing = torch.full(action_mask.shape, math.nan)
    return TrainBatch(context, actions, action_mask, old_logprobs=nothing)


def text_batch(rows=ROWS, garbage=10**6):
    width = max(len(response) for _, response in rows)
    actions = torch.tensor([response + [garbage] * (width - len(response)) for _, response in rows])
    mask = torch.tensor([[t < len(response) for t in range(width)] for _, response in rows])
    return train_batch(context(*(prompt for prompt, _ in rows), fill=garbage), actions, mask)


def geometry(policy, batch, *, microbatch_size=None, key=0, **options):
    return PolicyGeometry(policy, batch, FisherOptions(**options), microbatch_size=microbatch_size, key=key)


def random_vector(geometry, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(geometry.start.shape, generator=generator, dtype=geometry.start.dtype)


def dense(geometry):
    """The matrix of the products, column by column."""
    identity = torch.eye(len(geometry.start), dtype=geometry.start.dtype)
    return torch.stack([geometry.fisher_product(column) for column in identity], dim=1)


# -- a table, whose Fisher matrix is known ------------------------------------------------------------------------


def table(seed=0, temperature=0.7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(OPEN, 3, generator=generator, dtype=torch.float64)
    return TabularPolicy(build_tokenizer(), logits, temperature=temperature)


def table_batch(policy, numbers):
    rollout = as_rollout(policy, numbers)
    return train_batch(rollout.context, rollout.actions, rollout.action_mask)


def test_product_is_that_of_the_dense_fisher_matrix_of_the_visited_states():
    one = table()
    # responses "", "a", "a b" and "b b b" visit: empty 4 times, "a" twice, "a b", "b", "b b" once; 9 actions
    found = dense(geometry(one, table_batch(one, [0, 1, 4, 14])))
    expected = torch.zeros(OPEN * 3, OPEN * 3, dtype=torch.float64)
    for prefix, visits in {0: 4, 1: 2, 4: 1, 2: 1, 6: 1}.items():
        p = (one.logits[prefix] / 0.7).exp().detach()
        p = p / p.sum()
        for action in range(3):
            gradient = (torch.eye(3, dtype=torch.float64)[action] - p) / 0.7  # of log softmax(logits / 0.7)[action]
            rows = slice(3 * prefix, 3 * prefix + 3)
            expected[rows, rows] += visits / 9 * p[action] * gradient.outer(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_mean_over_all_responses_is_the_exact_fisher_matrix():
    one = table(1)
    lengths = as_rollout(one).lengths()
    weights = probabilities(one).detach() * lengths
    matrices = torch.stack([dense(geometry(one, table_batch(one, [number]))) for number in range(len(lengths))])
    found = (weights[:, None, None] * matrices).sum(0) / weights.sum()
    torch.testing.assert_close(found, action_fisher(one), rtol=1e-12, atol=1e-14)


# -- language models ----------------------------------------------------------------------------------------------


def language_policy(kind, lora=None):
    one = policy(kind, temperature=0.8)
    if lora is not None:
        add_adapters(one.model, lora)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return one.double()


def distributions(policy, rows=ROWS):
    """Log-probabilities of all tokens at each action, row by row without any padding."""
    for prompt, response in rows:
        logits = policy.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        yield (logits / policy.temperature).log_softmax(-1)


def kl_by_hand(old, policy, rows=ROWS):
    """Mean over actions of KL(old‖policy), ``old`` being distributions."""
    pairs = list(zip(old, distributions(policy, rows), strict=True))
    return sum((p.exp() * (p - q)).sum() for p, q in pairs) / sum(len(p) for p, _ in pairs)


def by_finite_differences(slope, vector, step=1e-5):
    """The derivative of a gradient along a vector: ``slope`` gives the gradient at start + s · vector."""
    return (slope(step) - slope(-step)) / (2 * step)


def language_product(policy, vector, rows=ROWS):
    """F v as the change of the gradient of the KL."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        old = list(distributions(policy, rows))

    def slope(scale):
        pieces = vector.split([parameter.numel() for parameter in trained])
        with torch.no_grad():
            for parameter, at, piece in zip(trained, start, pieces, strict=True):
                parameter.copy_(at + scale * piece.view_as(at))
        gradients = torch.autograd.grad(kl_by_hand(old, policy, rows), trained)
        return torch.cat([gradient.flatten() for gradient in gradients])

    result = by_finite_differences(slope, vector)
    slope(0.0)
    return result


KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama"])


@pytest.fixture(autouse=True)
def _float64_throughout(monkeypatch):
    """Llama's normalization rounds to float32, whatever precision the model is in."""

    def forward(self, hidden):
        return self.weight * hidden * (hidden.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@KINDS
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "adapters"])
def test_product_is_the_change_of_the_gradient_of_the_kl(kind, lora):
    one = language_policy(kind, lora)
    here = geometry(one, text_batch())
    vector = random_vector(here) / 10
    found = here.fisher_product(vector)
    expected = language_product(one, vector)
    assert len(vector) == sum(p.numel() for name, p in one.named_parameters() if lora is None or ".lora_" in name)
    assert expected.norm() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7 * expected.abs().max().item())


@KINDS
@pytest.mark.parametrize(
    ("options", "microbatch_size", "chunk"), [(None, 1, 1000), (1, 2, 1), (None, None, 4), (3, None, 4)]
)
def test_microbatches_and_chunks_of_logits_change_nothing(kind, options, microbatch_size, chunk, monkeypatch):
    one = language_policy(kind)
    plain = geometry(one, text_batch())
    vectors = [random_vector(plain, seed) for seed in range(2)]
    expected = [plain.fisher_product(vector) for vector in vectors]
    monkeypatch.setattr("rlhf_lightning.models.language.policy.chunk_tokens", lambda vocabulary: chunk)
    here = PolicyGeometry(
        one, text_batch(), FisherOptions(microbatch_size=options), microbatch_size=microbatch_size, key=0
    )
    for vector, product in zip(vectors, expected, strict=True):
        torch.testing.assert_close(here.fisher_product(vector), product, rtol=1e-9, atol=1e-11)


def test_padding_has_no_curvature():
    one = language_policy("llama")
    rows = [ROWS[0], ROWS[2]]
    batch = text_batch(rows)
    wide = train_batch(
        context(*(prompt for prompt, _ in rows), width=9, fill=-100),
        torch.nn.functional.pad(batch.actions, (0, 4), value=-100),
        torch.nn.functional.pad(batch.action_mask, (0, 4)),
    )
    vector = random_vector(geometry(one, batch))
    product = geometry(one, batch).fisher_product(vector)
    torch.testing.assert_close(geometry(one, wide).fisher_product(vector), product, rtol=1e-12, atol=1e-14)
    # each row by itself has no padding at all; 3 and 5 actions
    alone = [geometry(one, text_batch([row])).fisher_product(vector) for row in rows]
    torch.testing.assert_close((3 * alone[0] + 5 * alone[1]) / 8, product, rtol=1e-9, atol=1e-11)


@KINDS
def test_fisher_matrix_is_symmetric_and_positive_semi_definite(kind):
    here = geometry(language_policy(kind), text_batch(), microbatch_size=2)
    vectors = torch.stack([random_vector(here, seed) for seed in range(6)])
    gram = vectors @ torch.stack([here.fisher_product(vector) for vector in vectors]).T
    assert gram.abs().min() > 1e-6
    torch.testing.assert_close(gram, gram.T, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(gram).min() > 0


def test_products_are_in_full_precision_under_autocast():
    one = policy("llama")
    here = geometry(one, text_batch())
    vector = random_vector(here)
    expected = here.fisher_product(vector)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = geometry(one, text_batch())
        found = again.fisher_product(vector)
        again.move_to(again.start + 0.01 * vector)
        kl = again.kl()
    assert torch.equal(found, expected)
    assert kl == again.kl() > 0


def test_share_of_the_rows_is_drawn_by_the_key():
    one = language_policy("gpt2")
    vector = random_vector(geometry(one, text_batch()))
    single = [geometry(one, text_batch([row])).fisher_product(vector) for row in ROWS]
    lengths = [len(response) for _, response in ROWS]
    # a share of 0.3 of five rows is two of them
    pairs = {
        (i, j): (lengths[i] * single[i] + lengths[j] * single[j]) / (lengths[i] + lengths[j])
        for i in range(5)
        for j in range(i)
    }
    drawn = []
    for key in [*range(8), 0]:
        found = geometry(one, text_batch(), fraction=0.3, key=key).fisher_product(vector)
        matches = [pair for pair in pairs if torch.allclose(pairs[pair], found, rtol=1e-9, atol=1e-11)]
        assert len(matches) == 1
        drawn += matches
    assert drawn[0] == drawn[-1]
    assert len(set(drawn)) > 3


def test_kl_is_that_of_all_rows_whatever_share_the_fisher_matrix_sees():
    one, kls = language_policy("gpt2"), []
    for fraction in (0.3, 1.0):
        here = geometry(one, text_batch(), fraction=fraction)
        here.move_to(here.start + 0.01 * random_vector(here))
        kls.append(here.kl())
        here.move_to(here.start)
    assert kls[0] == kls[1] > 1e-4


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_ranks_add_up_to_the_whole(fraction, monkeypatch):
    # of five rows three and two; of a share of three two and one; of a share of one, one and none
    one = language_policy("gpt2")
    here = geometry(one, text_batch(), fraction=fraction)
    vector = random_vector(here)
    expected = here.fisher_product(vector)
    own = []
    for rank in range(2):
        monkeypatch.setattr("rlhf_lightning.training.minibatches.rank", lambda rank=rank: rank)
        monkeypatch.setattr("rlhf_lightning.training.minibatches.world_size", lambda: 2)
        own.append(geometry(one, text_batch(), fraction=fraction).fisher_product(vector))
    torch.testing.assert_close(own[0] + own[1], expected, rtol=1e-9, atol=1e-11)
    assert own[0].norm() > 0.01
    assert bool(own[1].norm() > 0.01) == (fraction > 0.1)


def test_least_share_is_one_row():
    one = table()
    batch = table_batch(one, [0, 1, 4, 14])
    found = dense(geometry(one, batch, fraction=1e-9))
    single = [dense(geometry(one, table_batch(one, [number]))) for number in (0, 1, 4, 14)]
    assert sum(torch.allclose(found, matrix, atol=1e-12) for matrix in single) == 1


# -- time and memory ----------------------------------------------------------------------------------------------


# five rows are one microbatch, three or five of them; four products
@pytest.mark.parametrize(
    ("of_fisher", "microbatch_size", "evaluations"), [(None, None, 1), (5, 2, 1), (None, 2, 3 * 4), (1, None, 5 * 4)]
)
def test_a_single_microbatch_is_evaluated_once_for_all_products(of_fisher, microbatch_size, evaluations, monkeypatch):
    calls, evaluate = [], LanguagePolicy.evaluate
    monkeypatch.setattr(LanguagePolicy, "evaluate", lambda *args, **kw: calls.append(1) or evaluate(*args, **kw))
    one = language_policy("gpt2")
    options = FisherOptions(microbatch_size=of_fisher)
    here, again = (PolicyGeometry(one, text_batch(), options, microbatch_size=microbatch_size, key=0) for _ in range(2))
    vectors = [random_vector(here, seed) for seed in (0, 1, 2, 0)]
    products = [here.fisher_product(vector) for vector in vectors]
    assert len(calls) == evaluations
    assert torch.equal(products[0], products[3])
    assert torch.equal(products[1], again.fisher_product(vectors[1]))


class WidestTensor(TorchDispatchMode):
    """Rows of the largest tensor whose last dimension is the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return result


def test_logits_exist_for_one_microbatch_only():
    vocabulary, width = 37, 8
    one = policy("gpt2", vocab_size=vocabulary, n_embd=width)
    rows = [([5 + n], [6 + n] * 10) for n in range(6)]  # 60 actions, of which a microbatch has 10
    widest = {}
    for microbatch_size in (None, 1):
        here = geometry(one, text_batch(rows), microbatch_size=microbatch_size)
        with WidestTensor(vocabulary) as seen:
            here.fisher_product(random_vector(here))
            here.kl()
        widest[microbatch_size] = seen.rows
    assert widest == {None: 60, 1: 10}  # the transposed head has as many rows as hidden units, which are fewer


# -- control ------------------------------------------------------------------------------------------------------

DISCRETE = Spaces(environment="x", observation_size=3, choices=4)
PAIRS = Spaces(environment="x", observation_size=3, choices=(2, 3))
CONTINUOUS = Spaces(environment="x", observation_size=3, low=(-1.0, -2.0), high=(1.0, 2.0))


@pytest.mark.parametrize("spaces", [DISCRETE, PAIRS, CONTINUOUS], ids=["categorical", "pairs", "gaussian"])
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_product_for_an_environments_policy(spaces, microbatch_size):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    one = ControlPolicy(spaces, hidden=(5,), temperature=0.8, initial_log_std=-0.3).double()
    with torch.no_grad():
        one.head.layer.weight.mul_(50)
    observations = torch.randn(8, 1, 3, generator=generator, dtype=torch.float64)
    actions = {
        DISCRETE: torch.arange(8)[:, None] % 4,
        PAIRS: torch.stack([torch.arange(8) % 2, torch.arange(8) % 3], dim=-1)[:, None],
        CONTINUOUS: torch.randn(8, 1, 2, generator=generator).double(),
    }[spaces]
    mask = torch.ones(8, 1, dtype=torch.bool)
    batch = train_batch(ObservationContext(observations, torch.full_like(observations, math.nan)), actions, mask)
    here = geometry(one, batch, microbatch_size=microbatch_size)
    trained = list(one.parameters())
    vector = random_vector(here)
    found = here.fisher_product(vector)

    def distribution():
        outputs = one.head.layer(one.trunk(observations[:, 0]))
        if spaces == PAIRS:  # as one distribution over the six pairs
            outputs = (outputs[:, :2, None] + outputs[:, None, 2:]).flatten(1)
        if not spaces.continuous:
            return Categorical(logits=outputs / 0.8)
        return Independent(Normal(outputs, one.head.log_std.exp() * 0.8), 1)

    with torch.no_grad():
        old = distribution()

    def slope(scale):
        here.move_to(here.start + scale * vector)
        return torch.cat([g.flatten() for g in torch.autograd.grad(kl_divergence(old, distribution()).mean(), trained)])

    expected = by_finite_differences(slope, vector)
    assert expected.norm() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# -- moving, gradients, the KL ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "adapters"])
@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_kl_is_exact_and_the_way_back_leaves_no_trace(lora, microbatch_size):
    one = language_policy("llama", lora)
    before = {name: parameter.detach().clone() for name, parameter in one.named_parameters()}
    with torch.no_grad():
        old = list(distributions(one))
    here = geometry(one, text_batch(), microbatch_size=microbatch_size)
    product = here.fisher_product(random_vector(here))
    assert here.kl() == 0
    for seed in range(2):
        here.move_to(here.start + 0.01 * random_vector(here, seed))
        expected = kl_by_hand(old, one).item()
        assert expected > 1e-4
        assert here.kl() == pytest.approx(expected, rel=1e-9)
        moved = {name for name, parameter in one.named_parameters() if not torch.equal(parameter, before[name])}
        assert moved == {name for name in before if lora is None or ".lora_" in name}
    here.move_to(here.start)
    assert all(torch.equal(parameter, before[name]) for name, parameter in one.named_parameters())
    assert torch.equal(here.fisher_product(random_vector(here)), product)


def test_gradient_is_what_backward_passes_left():
    one = language_policy("gpt2", LoRA(rank=2))
    here = geometry(one, text_batch())
    trained = [(name, p) for name, p in one.named_parameters() if p.requires_grad]
    assert torch.equal(here.gradient(), torch.zeros_like(here.start))
    name, parameter = trained[1]
    (3 * parameter.sum()).backward()
    (2 * parameter.sum()).backward()
    expected = torch.cat([torch.full((p.numel(),), 5.0 if n == name else 0.0, dtype=torch.float64) for n, p in trained])
    assert torch.equal(here.gradient(), expected)
    assert all(p.grad is None for p in one.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(5 * parameter.sum()).backward()
    assert torch.equal(here.gradient(scaler), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -0.1}, "fisher.damping must be 0 or more, got -0.1"),
        ({"damping": math.inf}, "fisher.damping must be 0 or more, got inf"),
        ({"damping": math.nan}, "fisher.damping must be 0 or more, got nan"),
        ({"iterations": 0}, "fisher.iterations must be at least 1, got 0"),
        ({"tolerance": -1e-3}, "fisher.tolerance must be at least 0 and below 1, got -0.001"),
        ({"tolerance": 1.0}, "fisher.tolerance must be at least 0 and below 1, got 1.0"),
        ({"fraction": 0.0}, "fisher.fraction must be above 0 and at most 1, got 0.0"),
        ({"fraction": 1.5}, "fisher.fraction must be above 0 and at most 1, got 1.5"),
        ({"microbatch_size": 0}, "fisher.microbatch_size must be at least 1 .*, got 0"),
    ],
)
def test_bad_options_of_the_fisher_matrix_are_named_in_one_line(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        FisherOptions(**options)
