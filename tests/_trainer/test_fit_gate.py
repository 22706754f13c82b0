"""Whose losses a monitor judges a fit by."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_tuning._trainer.fit_gate import course_of, why_the_loss_tells_nothing
from lightning_tuning._trainer.fit_losses import fit_losses
from tests.toys import Classifier, loader


class Course(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        fit_losses(trainer).note(trainer, outputs)

    def on_train_end(self, trainer, pl_module):
        self.course = course_of(trainer)
        trainer.optimizers.append(trainer.optimizers[0])
        self.of_two = why_the_loss_tells_nothing(trainer)


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [(lambda p: torch.optim.SGD(p, 0.1), ""), (lambda p: torch.optim.LBFGS(p, 0.1), "L-BFGS")],
)
def test_the_loss_of_one_optimizer_that_takes_one_step_tells(optimizer, why):
    course = Course()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        **quiet, accelerator="cpu", max_epochs=5, enable_model_summary=False, callbacks=[course]
    )
    trainer.fit(Classifier(optimizer=optimizer), loader(), loader(8))
    assert why in course.course.reason
    assert bool(course.course.reason) == bool(why)
    assert course.course.steps == trainer.global_step
    assert "several" in course.of_two
