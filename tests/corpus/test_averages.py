"""An average, judged beside the raw weights, leaves the training of odd programs as it is."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_tuning import EMAWeights
from tests.corpus.program import QUIET, some
from tests.corpus.test_healthy import PROGRAMS

LIMITS = {"max_epochs": 2, "limit_train_batches": 6, "limit_val_batches": 2}


def weights_after(program, *callbacks):
    seed_everything(0, verbose=False)
    module, train, val = program.make()
    settings = {**QUIET, **program.trainer, **LIMITS, "check_val_every_n_epoch": 1}
    trainer = Trainer(**settings, callbacks=list(callbacks))
    trainer.fit(module, train, val)
    return module.state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", some(PROGRAMS), ids=lambda program: program.name)
def test_training_is_bit_for_bit_the_same(program):
    plain = weights_after(program)
    found = weights_after(program, EMAWeights(validate="both", after_fit="raw"))
    assert list(found) == list(plain)
    for name, value in plain.items():
        assert torch.equal(found[name].nan_to_num(), value.nan_to_num())
