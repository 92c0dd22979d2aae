"""Apple silicon: sums and noise need float64, which its GPU does not have."""

import logging

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator

from rlhf_lightning.cli.assembly import completed
from rlhf_lightning.errors import UserError


def accelerator(given, tmp_path):
    return completed({"accelerator": given, "logger": False}, tmp_path, None, None)


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))


@pytest.mark.usefixtures("apple")
def test_auto_is_the_cpu_on_apple_silicon_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        arguments = accelerator("auto", tmp_path)
    assert isinstance(Trainer(**arguments).accelerator, CPUAccelerator)
    assert [record.getMessage() for record in caplog.records if "Apple silicon" in record.getMessage()] == [
        "Apple silicon: training on the CPU, since sums and noise need float64 and the GPU has none"
    ]
    assert accelerator("cpu", tmp_path)["accelerator"] == "cpu"


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize("given", ["gpu", "mps"])
def test_the_gpu_of_apple_silicon_is_refused(given, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.accelerator is Apple's GPU, which has no float64.*expected cpu"):
        accelerator(given, tmp_path)


def test_elsewhere_the_accelerator_is_what_was_asked_for(tmp_path, caplog):
    for given in ("auto", "cpu", "gpu"):
        assert accelerator(given, tmp_path)["accelerator"] == given
    assert "Apple" not in caplog.text
