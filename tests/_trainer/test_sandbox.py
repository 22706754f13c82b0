"""A fit with a probe equals the fit without it."""

import pytest

from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Found .* module.s. in eval mode:UserWarning",
        "You defined a `validation_step` but have no `val_dataloader`:UserWarning",
        "Your `val_dataloader`'s sampler has shuffling enabled:UserWarning",
        "`training_step` returned `None`:UserWarning",
        "train_dataloader yielded None:UserWarning",
        "Trying to infer the `batch_size` from an ambiguous collection:UserWarning",
        "Using ModelCheckpoint with manual optimization and every_n_train_steps:UserWarning",
    )
]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_probe_changes_nothing(program, tmp_path):
    assert_same(program, tmp_path)
