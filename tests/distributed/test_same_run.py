"""The same run whatever the microbatch size and the number of devices, in float64."""

import launched
import pytest
from training_helpers import distance, same, snapshot
from two_ranks import RUNS, evaluated

TOLERANCE = 1e-9


@pytest.fixture(scope="module", params=sorted(RUNS))
def whole(request, tmp_path_factory):
    """Name, rows and parameters of a run on one device, without microbatches."""
    rows, module = RUNS[request.param](precision="64-true", default_root_dir=tmp_path_factory.mktemp("whole"))
    return request.param, rows.untimed(), snapshot(module)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """What each of two ranks ends with."""
    return launched.on_two_ranks("two_ranks.py", tmp_path_factory.mktemp("two_ranks"))


def assert_same_rows(rows, expected):
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("microbatch_size", [1, 3])
def test_microbatches_change_nothing(whole, microbatch_size, tmp_path):
    name, rows, parameters = whole
    found, module = RUNS[name](microbatch_size, precision="64-true", default_root_dir=tmp_path)
    assert_same_rows(found.untimed(), rows)
    assert distance(snapshot(module), parameters) <= TOLERANCE


@pytest.mark.slow
def test_two_ranks_change_nothing(whole, on_two_ranks):
    name, rows, parameters = whole
    for result in on_two_ranks:
        assert_same_rows(result[name]["rows"], rows)
        assert distance(result[name]["parameters"], parameters) <= TOLERANCE
    assert same(on_two_ranks[0][name]["parameters"], on_two_ranks[1][name]["parameters"])


def test_the_compared_update_did_end_early(whole):
    name, rows, _ = whole
    if name == "ppo":  # 9 steps an update otherwise: what two ranks decide together would not have been tried
        assert min(row["policy/steps"] for row in rows[1:]) < 9


@pytest.mark.slow
def test_two_ranks_evaluate_alike(on_two_ranks, tmp_path):
    whole = evaluated(precision="64-true", default_root_dir=tmp_path)
    for result in on_two_ranks:
        assert result["evaluated"].keys() == whole.keys()
        for kind, rows in whole.items():
            assert_same_rows(result["evaluated"][kind], rows)


@pytest.mark.slow
def test_minibatch_that_the_devices_cannot_share_is_refused_before_anything_is_collected(on_two_ranks):
    for result in on_two_ranks:
        refusal = result["refusal"]
        assert "minibatch_size is 3, which 2 devices do not divide" in refusal["message"]
        assert "\n" not in refusal["message"]
        assert refusal["collected"] == 0
