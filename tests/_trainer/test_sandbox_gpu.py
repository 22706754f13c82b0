"""The sandbox on a GPU."""

import pytest
import torch

from lightning_tuning._trainer import tensor_state
from tests._trainer.probing import Probe, assert_same, differences, run_fit
from tests._trainer.programs import PROGRAMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Precision 16-mixed is not supported by the model summary"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning"),
]


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


NAMES = ["plain", "random_from_torch", "gan", "attributes", "two_persistent_workers_random"]


@pytest.mark.parametrize("name", NAMES)
def test_probe_changes_nothing(name, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, accelerator="gpu")


@pytest.mark.parametrize("name", ["plain", "accumulation_and_clipping"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision(name, precision, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, accelerator="gpu", precision=precision)


def test_snapshot_in_host_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_state, "_has_room", lambda *_: False)
    assert_same(PROGRAMS["plain"], tmp_path, accelerator="gpu", precision="16-mixed")


def test_room_is_judged_by_free_memory(monkeypatch):
    weights = [torch.ones(1000, device="cuda")]
    device = weights[0].device
    assert tensor_state._has_room(device, weights)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    torch.cuda.empty_cache()
    huge = [torch.empty(1, device="cuda").expand(10**12)]
    assert not tensor_state._has_room(device, huge)
    state = tensor_state.TensorState(weights)
    assert state._saved[0].device == device or state._saved[0].device.type == "cpu"


def test_random_state_of_the_device(tmp_path):
    def act(box):
        before = torch.cuda.get_rng_state()
        box.run(2, after_step=lambda *_: torch.rand(3, device="cuda"))
        assert differences(before, torch.cuda.get_rng_state())
        box.rewind()
        return not differences(before, torch.cuda.get_rng_state())

    probe = Probe(act)
    run_fit(PROGRAMS["plain"], tmp_path, probe, accelerator="gpu")
    assert probe.result


def test_memory_is_given_back(tmp_path):
    def act(box):
        before = torch.cuda.memory_allocated()
        box.run(5, after_step=lambda *_: None)
        box.rewind()
        return torch.cuda.memory_allocated() - before

    probe = Probe(act)
    run_fit(PROGRAMS["plain"], tmp_path, probe, accelerator="gpu")
    assert probe.result <= 0
