"""Copies of tensors: bit for bit, in place, on the host where the device has no room."""

import pytest
import torch

from lightning_tuning._trainer import tensor_state
from lightning_tuning._trainer.tensor_state import TensorState
from tests._trainer.probing import Probe, assert_same, same_bits
from tests._trainer.programs import PROGRAMS

TENSORS = {
    "float": lambda: torch.tensor([1.5, -0.0, float("nan"), float("inf")]),
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "long": lambda: torch.tensor(7),
    "empty": lambda: torch.empty(0),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "part": lambda: torch.arange(6.0)[::2],
    "expanded": lambda: torch.ones(3, 1).expand(3, 4),
    "expanded scalar": lambda: torch.tensor(1.0).expand(4),
    "channels last": lambda: torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_restored_bit_for_bit_in_place(name):
    tensor, expected = TENSORS[name](), TENSORS[name]()
    where = None if name == "sparse" else tensor.data_ptr()
    state = TensorState([tensor, tensor])
    with torch.no_grad():
        for _ in range(2):
            if name == "sparse":
                tensor.copy_(torch.ones(3, 3).to_sparse())
            elif name.startswith("expanded"):
                tensor.as_strided((1,), (1,)).fill_(5)
            else:
                tensor.fill_(1 if tensor.dtype == torch.bool else 5)
            assert tensor.numel() == 0 or not same_bits(tensor, expected)
            state.restore()
            assert same_bits(tensor, expected)
    assert where is None or tensor.data_ptr() == where


def test_inference_tensors():
    with torch.inference_mode():
        tensor = torch.zeros(2)
    state = TensorState([tensor])
    with torch.inference_mode():
        tensor.add_(1)
    state.restore()
    assert torch.equal(tensor.clone(), torch.zeros(2))


def test_results_of_a_graph():
    leaf = torch.ones(2, requires_grad=True)
    result = leaf * 2
    state = TensorState([result, leaf])
    state.restore()
    assert result.requires_grad


def test_without_tensors_there_is_nothing_to_keep():
    state = TensorState([])
    state.restore()
    assert state._saved == []


def test_no_room_on_the_device(tmp_path, monkeypatch):
    asked = []

    def has_room(device, tensors):
        asked.append(device)
        return False

    monkeypatch.setattr(tensor_state, "_has_room", has_room)
    for name in ("plain", "attributes"):
        assert_same(PROGRAMS[name], tmp_path / name, Probe())
    assert asked


def test_a_copy_on_the_host_is_a_copy(monkeypatch):
    """A tensor that lies on the host already must not be its own copy."""
    monkeypatch.setattr(tensor_state, "_has_room", lambda *_: False)
    tensor = torch.ones(2)
    state = TensorState([tensor])
    tensor.zero_()
    state.restore()
    assert torch.equal(tensor, torch.ones(2))
