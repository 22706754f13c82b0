import pytest
import torch
from torch import nn

from lightning_tuning import checkpoint_weights
from lightning_tuning.functional.checkpoint_weights import ENTRIES

AVERAGED, RAW, SECOND = ({"w": torch.full((2,), v)} for v in (1.0, 2.0, 3.0))


def saved(path="a.ckpt", **extra):
    both = {"state_dict": AVERAGED, "current_model_state": RAW}
    torch.save({**both, **extra}, path)
    return path


def test_each_set():
    file = saved(**{ENTRIES: [{"average": {}}, {"average": SECOND}]})
    for found, expected in [
        (checkpoint_weights(file), AVERAGED),
        (checkpoint_weights(file, "raw"), RAW),
        (checkpoint_weights(file, index=1), SECOND),
        (checkpoint_weights(file, "raw", index=1), RAW),
    ]:
        assert torch.equal(found["w"], expected["w"])


def test_a_file_of_lightnings_callback_has_both_too():
    file = saved(averaging_state={"n_averaged": torch.tensor(3)})
    assert torch.equal(checkpoint_weights(file)["w"], AVERAGED["w"])


def test_a_second_average_is_completed_by_the_raw_weights():
    file = saved(**{ENTRIES: [{"average": {}}, {"average": {"v": SECOND["w"]}}]})
    found = checkpoint_weights(file, index=1)
    assert torch.equal(found["w"], RAW["w"])
    assert torch.equal(found["v"], SECOND["w"])


def test_a_plain_file_holds_raw_weights_alone(tmp_path):
    torch.save({"state_dict": RAW}, "plain.ckpt")
    assert torch.equal(checkpoint_weights("plain.ckpt", "raw")["w"], RAW["w"])
    with pytest.raises(ValueError, match="holds no averaged set"):
        checkpoint_weights("plain.ckpt")
    with pytest.raises(ValueError, match="holds 1 averaged set"):
        checkpoint_weights(saved(), index=2)


def test_wrong_files_and_words(tmp_path):
    with pytest.raises(ValueError, match="which='best'"):
        checkpoint_weights(saved(), "best")
    with pytest.raises(ValueError, match="sharded checkpoint"):
        checkpoint_weights(tmp_path)
    torch.save([1, 2], "list.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a Lightning trainer"):
        checkpoint_weights("list.pt")


def test_code_in_a_file_is_not_run():
    file = saved(hyper_parameters={"layer": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="weights_only=False"):
        checkpoint_weights(file)
    assert torch.equal(checkpoint_weights(file, weights_only=False)["w"], AVERAGED["w"])
