import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.trust_region import (
    backtracking_line_search,
    conjugate_gradient,
    damped,
    flatten,
    trust_region_scale,
    unflatten,
)

NAN, INF = math.nan, math.inf

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 8)


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def positive_definite(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with eigenvalues from 1 to about 30, and a right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return factor @ factor.T + torch.eye(size, dtype=torch.float64), torch.randn(
        size, generator=generator, dtype=torch.float64
    )


class Counted:
    """A matrix as a product that counts its calls."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.calls = matrix, 0

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.matrix @ v


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int64), b.view(torch.int64))


# flatten, unflatten


def test_flatten_by_hand():
    flat = flatten([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(5.0), torch.tensor([6.0])])
    assert flat.tolist() == [1, 2, 3, 4, 5, 6]


def test_flatten_reads_transposed_tensors_row_by_row():
    assert flatten([torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T]).tolist() == [1, 3, 2, 4]


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4))
def test_unflatten_inverts_flatten(shapes):
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    flat = flatten(tensors)
    pieces = unflatten(flat, like=tensors)
    assert [piece.shape for piece in pieces] == [tensor.shape for tensor in tensors]
    assert all(torch.equal(piece, tensor) for piece, tensor in zip(pieces, tensors, strict=True))
    assert torch.equal(flatten(pieces), flat)


def test_unflatten_copies_nothing():
    flat = torch.arange(4.0)
    (piece,) = unflatten(flat, like=[torch.empty(2, 2, dtype=torch.float64)])
    assert piece.dtype == flat.dtype
    assert piece.data_ptr() == flat.data_ptr()


@pytest.mark.parametrize("size", [3, 5])
def test_unflatten_refuses_a_vector_of_another_length(size):
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        unflatten(torch.zeros(size), like=[torch.zeros(2, 2)])


# conjugate_gradient, damped


def test_conjugate_gradient_by_hand():
    # b·b = 5, b·Hb = (1, 2)·(6, 7) = 20: after one product x = b/4, the residual is (1 − 1.5, 2 − 1.75), and
    # √(0.3125 / 5) = 0.25; after two x = (1/11, 7/11) because 4/11 + 7/11 = 1 and 1/11 + 21/11 = 2
    matrix, target = vector(4, 1, 1, 3).view(2, 2), vector(1, 2)
    solution, residual = conjugate_gradient(matrix.mv, target, iterations=1, tolerance=0.0)
    assert solution.tolist() == [0.25, 0.5]
    assert residual.item() == pytest.approx(0.25)
    solution, residual = conjugate_gradient(matrix.mv, target, iterations=2, tolerance=0.0)
    assert solution.tolist() == pytest.approx([1 / 11, 7 / 11])
    assert residual.item() < 1e-15


@given(seeds, sizes)
def test_conjugate_gradient_equals_a_dense_solve(seed, size):
    matrix, target = positive_definite(seed, size)
    solution, residual = conjugate_gradient(matrix.mv, target, iterations=4 * size, tolerance=1e-13)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)
    assert residual <= 1e-13


@given(seeds, sizes, st.floats(0.01, 10))
def test_conjugate_gradient_of_a_damped_product_equals_a_dense_solve(seed, size, damping):
    factor, target = positive_definite(seed, size)
    # of rank one: without damping there is no unique solution
    matrix = torch.outer(factor[0], factor[0])
    solution, _ = conjugate_gradient(damped(matrix.mv, damping=damping), target, iterations=4, tolerance=1e-13)
    expected = torch.linalg.solve(matrix + damping * torch.eye(size, dtype=torch.float64), target)
    torch.testing.assert_close(solution, expected, rtol=1e-7, atol=1e-9)


def test_damped_by_hand():
    assert damped(torch.neg, damping=3.0)(vector(1, -2)).tolist() == [2, -4]


@given(seeds, st.integers(2, 8), st.integers(0, 8))
def test_conjugate_gradient_reports_the_true_residual(seed, size, iterations):
    matrix, target = positive_definite(seed, size)
    solution, residual = conjugate_gradient(matrix.mv, target, iterations=iterations, tolerance=0.0)
    assert residual.shape == ()
    assert residual.item() == pytest.approx(((target - matrix @ solution).norm() / target.norm()).item(), abs=1e-11)


@given(seeds, st.integers(2, 8))
def test_conjugate_gradient_lowers_the_quadratic_with_every_iteration(seed, size):
    matrix, target = positive_definite(seed, size)
    values = []
    for iterations in range(size + 1):
        x, _ = conjugate_gradient(matrix.mv, target, iterations=iterations, tolerance=0.0)
        values.append((0.5 * x @ matrix @ x - target @ x).item())
    assert values[0] == 0
    assert values[1] < 0
    assert all(after <= before + 1e-12 for before, after in pairwise(values))


def test_conjugate_gradient_needs_one_product_per_distinct_eigenvalue():
    product = Counted(torch.diag(vector(2, 2, 2, 5, 5)))
    solution, _ = conjugate_gradient(product, vector(2, 4, 6, 10, 5), iterations=20, tolerance=1e-10)
    assert solution.tolist() == pytest.approx([1, 2, 3, 2, 1])
    assert product.calls == 2


def test_conjugate_gradient_stops_at_the_tolerance_and_at_the_limit():
    matrix, target = torch.diag(torch.logspace(0, 3, 30, dtype=torch.float64)), torch.ones(30, dtype=torch.float64)
    used, residuals = [], []
    for iterations, tolerance in [(200, 0.5), (200, 1e-2), (200, 1e-8), (3, 1e-8), (0, 1e-8)]:
        product = Counted(matrix)
        _, residual = conjugate_gradient(product, target, iterations=iterations, tolerance=tolerance)
        used.append(product.calls)
        residuals.append(residual.item())
    assert 0 < used[0] < used[1] < used[2] < 200
    assert all(r <= t for r, t in zip(residuals, (0.5, 1e-2, 1e-8), strict=False))
    assert used[3:] == [3, 0]
    assert residuals[3] > 1e-8
    assert residuals[4] == 1


def test_conjugate_gradient_of_zero_is_zero_without_a_product():
    product = Counted(torch.eye(3))
    solution, residual = conjugate_gradient(product, torch.zeros(3), iterations=10, tolerance=0.0)
    assert solution.tolist() == [0, 0, 0]
    assert residual.item() == 0
    assert product.calls == 0


@pytest.mark.parametrize("curvature", [0.0, -1.0])
def test_conjugate_gradient_takes_no_step_along_the_first_direction_without_curvature(curvature):
    product = Counted(curvature * torch.eye(2))
    solution, residual = conjugate_gradient(product, torch.ones(2), iterations=10, tolerance=0.0)
    assert solution.tolist() == [0, 0]
    assert residual.item() == 1
    assert product.calls == 1


def test_conjugate_gradient_keeps_what_it_had_at_negative_curvature():
    # b = (2, 1), b·Hb = 4 − 1 = 3, x = 5/3 b; residual (−4/3, 8/3), next direction (20/9, 40/9), of curvature < 0;
    # the relative residual is √((80/9) / 5) = 4/3
    product = Counted(torch.diag(vector(1, -1)))
    solution, residual = conjugate_gradient(product, vector(2, 1), iterations=10, tolerance=0.0)
    assert solution.tolist() == pytest.approx([10 / 3, 5 / 3])
    assert residual.item() == pytest.approx(4 / 3)
    assert product.calls == 2


@pytest.mark.parametrize("broken", ["product", "target"])
def test_conjugate_gradient_shows_nan_and_keeps_the_number_of_products(broken):
    product = Counted(torch.full((2, 2), NAN) if broken == "product" else torch.eye(2))
    target = torch.ones(2) if broken == "product" else torch.tensor([1.0, NAN])
    solution, residual = conjugate_gradient(product, target, iterations=5, tolerance=1e-3)
    assert solution.isnan().any()
    assert residual.isnan()
    assert product.calls == 5


def test_conjugate_gradient_works_in_the_dtype_of_the_target():
    matrix, target = positive_definite(1, 6)
    solution, residual = conjugate_gradient(matrix.float().mv, target.float(), iterations=20, tolerance=1e-6)
    assert solution.dtype == residual.dtype == torch.float32
    torch.testing.assert_close(solution.double(), torch.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)


def softmax_policy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, advantages, exact gradient of the expected advantage and exact Fisher matrix of a softmax policy."""
    logits, advantages = vector(0.3, -1.0, 0.8, 0.0), vector(1.0, -2.0, 0.5, 3.0)
    p = logits.softmax(-1)
    return logits, advantages, p * (advantages - p @ advantages), torch.diag(p) - torch.outer(p, p)


def test_conjugate_gradient_of_a_softmax_policy_is_its_natural_gradient():
    # F x = p (x − p·x), so F x = g at x = A + constant; the iterates stay in the range of F, where entries sum to 0
    _, advantages, gradient, fisher = softmax_policy()
    direction, residual = conjugate_gradient(fisher.mv, gradient, iterations=20, tolerance=1e-12)
    torch.testing.assert_close(direction, advantages - advantages.mean())
    assert residual <= 1e-12


# trust_region_scale


def test_trust_region_scale_by_hand():
    # xᵀHx = 1 · 3 + 2 · 1 = 5, √(2 · 0.1 / 5) = 0.2
    assert trust_region_scale(vector(1, 2), vector(3, 1), max_kl=0.1).item() == pytest.approx(0.2)


@given(seeds, sizes, st.floats(1e-4, 1))
def test_trust_region_scale_takes_the_quadratic_model_to_the_bound(seed, size, max_kl):
    matrix, x = positive_definite(seed, size)
    step = trust_region_scale(x, matrix @ x, max_kl=max_kl) * x
    assert (0.5 * step @ matrix @ step).item() == pytest.approx(max_kl)


@pytest.mark.parametrize("image", [(0.0, 0.0), (-1.0, 0.0), (2.0, -1.0)])
def test_trust_region_scale_is_zero_without_curvature(image):
    assert trust_region_scale(vector(1, 2), vector(*image), max_kl=0.1).item() == 0


def test_trust_region_scale_does_not_hide_nan():
    assert trust_region_scale(vector(1, NAN), vector(1, 1), max_kl=0.1).isnan()


def test_a_scaled_step_of_a_softmax_policy_has_the_wanted_kl():
    logits, _, gradient, fisher = softmax_policy()
    direction, _ = conjugate_gradient(fisher.mv, gradient, iterations=20, tolerance=1e-12)
    step = trust_region_scale(direction, fisher @ direction, max_kl=1e-8) * direction
    old, new = logits.log_softmax(-1), (logits + step).log_softmax(-1)
    # the model is exact up to the third order of the step, which is about √(2 · 1e-8)
    assert (old.exp() * (old - new)).sum().item() == pytest.approx(1e-8, rel=1e-3)


# backtracking_line_search


def search(evaluate, start=None, step=None, **options):
    """From 0 along a full step of 4 on a surrogate of slope 1, which therefore promises 4."""
    defaults = {
        "expected_improvement": 4.0,
        "max_kl": 1.0,
        "shrink": 0.5,
        "max_backtracks": 10,
        "accept_ratio": 0.0,
    }
    start, step = vector(0.0) if start is None else start, vector(4.0) if step is None else step
    return backtracking_line_search(evaluate, start, step, **(defaults | options))


def parabola(parameters: torch.Tensor) -> tuple[float, float]:
    """Surrogate x − x² and KL ½ x²."""
    x = parameters.sum().item()
    return x - x * x, 0.5 * x * x


@pytest.mark.parametrize(
    ("options", "backtracks", "x"),
    [
        ({}, 3, 0.5),  # −12 at 4, −2 at 2, 0 at 1 is no improvement, 0.25 at 0.5
        ({"max_kl": 0.1}, 4, 0.25),  # KL 0.125 at 0.5 is too much, 0.03125 is not
        ({"max_kl": 0.125}, 3, 0.5),  # the bound itself is allowed
        ({"accept_ratio": 0.8}, 5, 0.125),  # x − x² ≥ 0.8 x needs x ≤ 0.2
        ({"shrink": 0.1}, 1, 0.4),
        ({"step": vector(0.5)}, 0, 0.5),
        ({"step": vector(0.5), "max_backtracks": 0}, 0, 0.5),
        ({"start": vector(-0.25)}, 2, 0.75),  # −0.25 + 4 / 4
    ],
)
def test_line_search_by_hand(options, backtracks, x):
    result = search(parabola, **options)
    assert result.accepted
    assert result.backtracks == backtracks
    assert result.parameters.tolist() == pytest.approx([x])
    assert result.step_size == pytest.approx(options.get("shrink", 0.5) ** backtracks)
    assert (result.improvement, result.kl) == pytest.approx((x - x * x, 0.5 * x * x))


def test_line_search_tries_ever_shorter_steps_and_sets_the_accepted_one():
    tried = []

    def third_time(parameters):
        tried.append(parameters)
        return (1.0 if len(tried) == 3 else -1.0), 0.0

    start, step = vector(1.0, -1.0), vector(8.0, 16.0)
    result = search(third_time, start, step)
    assert [x.tolist() for x in tried] == [[9, 15], [5, 7], [3, 3]]
    assert torch.equal(result.parameters, tried[-1])
    assert (start.tolist(), step.tolist()) == ([1, -1], [8, 16])


def test_line_search_rejects_a_bad_direction_and_leaves_the_start_bit_identical():
    # uphill is (1, 1, 1): the planted direction loses at every length; −0 and a subnormal would not survive arithmetic
    start = vector(-0.0, 5e-324, 1 / 3)
    copy, tried = start.clone(), []

    def surrogate(parameters):
        tried.append(parameters)
        difference = parameters - copy
        return difference.sum().item(), 0.5 * (difference @ difference).item()

    result = search(surrogate, start, vector(-1e-3, -1e-3, -1e-3), expected_improvement=-3e-3, accept_ratio=0.1)
    assert not result.accepted
    assert same_bits(result.parameters, copy)
    assert same_bits(start, copy)
    assert (result.step_size, result.improvement, result.kl, result.backtracks) == (0, 0, 0, 10)
    assert len(tried) == 11


def test_line_search_rejects_where_the_kl_never_fits():
    result = search(lambda x: (1.0, 2.0), max_backtracks=4)
    assert not result.accepted
    assert result.backtracks == 4


def test_line_search_wants_more_than_no_change():
    # so short a step that the parameters stay where they are
    assert not search(parabola, step=vector(0.0)).accepted


@pytest.mark.parametrize(
    "broken", [(NAN, 0.0), (INF, 0.0), (-INF, 0.0), (1.0, NAN), (1.0, INF), (1.0, -INF), (NAN, NAN)]
)
def test_line_search_never_accepts_what_is_not_finite(broken):
    answers = iter([broken, broken, (0.5, 0.25)])
    result = search(lambda x: next(answers), max_kl=INF)
    assert result.backtracks == 2
    assert (result.improvement, result.kl) == (0.5, 0.25)


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_line_search_does_not_try_a_step_that_is_not_finite(broken):
    start, tried = vector(1.0, 2.0), []
    # the evaluation reads the first parameter only, and is content
    result = search(lambda x: tried.append(x) or (x[0].item(), 0.0), start, vector(1.0, broken))
    assert not result.accepted
    assert same_bits(result.parameters, vector(1.0, 2.0))
    assert (tried, result.backtracks) == ([], 0)


def test_line_search_rejects_a_promise_that_is_nan():
    assert not search(parabola, expected_improvement=NAN, accept_ratio=0.1).accepted


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=6),
    st.floats(-1, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_line_search_accepts_the_longest_step_that_passes(answers, expected, max_kl, ratio):
    passes = []
    for k, (improvement, kl) in enumerate(answers):
        passes.append(improvement > 0 and improvement >= ratio * expected / 2**k and kl <= max_kl)
    remaining = iter(answers)
    result = search(
        lambda x: next(remaining),
        expected_improvement=expected,
        max_kl=max_kl,
        accept_ratio=ratio,
        max_backtracks=len(answers) - 1,
    )
    assert result.accepted == any(passes)
    if result.accepted:
        first = passes.index(True)
        assert result.backtracks == first
        assert (result.improvement, result.kl) == answers[first]
        assert result.parameters.item() == 4 / 2**first
    else:
        assert result.parameters.item() == 0


def test_line_search_on_a_softmax_policy_takes_a_natural_step_inside_the_region():
    logits, advantages, gradient, fisher = softmax_policy()
    direction, _ = conjugate_gradient(damped(fisher.mv, damping=1e-3), gradient, iterations=20, tolerance=1e-12)
    max_kl = 0.5
    step = trust_region_scale(direction, fisher @ direction, max_kl=max_kl) * direction
    old = logits.log_softmax(-1)

    def measured(parameters):
        new = parameters.log_softmax(-1)
        return ((new.exp() - old.exp()) @ advantages).item(), (old.exp() * (old - new)).sum().item()

    good, bad = (
        backtracking_line_search(
            measured,
            logits,
            sign * step,
            expected_improvement=(gradient @ step).item(),
            max_kl=max_kl,
            shrink=0.8,
            max_backtracks=10,
            accept_ratio=0.1,
        )
        for sign in (1, -1)
    )
    assert good.accepted
    assert 0 < measured(good.parameters)[1] <= max_kl
    assert measured(good.parameters)[0] > 0.1
    assert not bad.accepted
    assert same_bits(bad.parameters, logits)
