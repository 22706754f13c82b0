"""EnsembleModule in a Trainer: what it logs, what it loads, what it refuses."""

import copy
import pickle

import pytest
import torch
import torchmetrics
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import EMAWeights, EnsembleModule
from tests.toys import Classifier, loader

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def classifier(seed, **settings):
    made = Classifier(**settings)
    torch.manual_seed(seed)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def validated(module, data=None):
    [found] = Trainer(**QUIET).validate(module, loader(40) if data is None else data, verbose=False)
    return found


def batches(data):
    return [torch.cat(parts) for parts in zip(*data, strict=True)]


@pytest.mark.parametrize("vectorize", [False, True])
def test_the_modules_own_steps_log_the_loss_of_averaged_probabilities(vectorize):
    members = [classifier(seed) for seed in range(3)]
    ensemble = EnsembleModule(Classifier(), members, vectorize=vectorize)
    x, y = batches(loader(40))
    mean = torch.stack([member(x).softmax(1) for member in members]).mean(0)
    expected = nn.functional.nll_loss(mean.log(), y).item()
    assert validated(ensemble)["val_loss"] == pytest.approx(expected, rel=1e-5)
    trainer = Trainer(**QUIET)
    [tested] = trainer.test(ensemble, loader(40), verbose=False)
    assert tested["test_loss"] == pytest.approx(expected, rel=1e-5)
    predicted = torch.cat(trainer.predict(ensemble, loader(40)))
    torch.testing.assert_close(predicted.softmax(1), mean)


def test_one_member_is_that_module():
    member = classifier(1)
    assert validated(EnsembleModule(Classifier(), [member]))["val_loss"] == pytest.approx(
        validated(member)["val_loss"], rel=1e-6
    )


class Child(LightningModule):
    """Has no forward; metrics of its own, and a hook."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.ended = 0

    def validation_step(self, batch):
        outputs = self.net(batch[0])
        self.accuracy(outputs, batch[1])
        self.log("val_accuracy", self.accuracy)
        return outputs

    def on_validation_epoch_end(self):
        self.ended += 1
        self.log("members", float(self.ended))


@pytest.mark.parametrize("vectorize", [False, True])
def test_a_child_that_steps_call_directly_with_metrics_and_hooks(vectorize):
    members = []
    for seed in range(4):
        torch.manual_seed(seed)
        member = Child()
        member.net[1].running_mean.normal_()
        members.append(member.eval())
    ensemble = EnsembleModule(Child(), members, vectorize=vectorize)
    x, y = batches(loader(40))
    with torch.no_grad():
        mean = torch.stack([member.net(x).softmax(1) for member in members]).mean(0)
    found = validated(ensemble)
    assert found["val_accuracy"] == pytest.approx((mean.argmax(1) == y).float().mean().item())
    assert found["members"] == 1.0
    # nothing of it stays in the template
    assert "forward" not in vars(ensemble.model.net)


class Named(LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        return {"logits": self.body(x), "value": self.value(x)}

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("val_mse", nn.functional.mse_loss(out["value"][:, 0], batch[1].float()))
        self.log("val_ce", nn.functional.cross_entropy(out["logits"], batch[1]))


def test_a_dict_output_by_name_and_a_regression():
    members = [Named() for _ in range(3)]
    ensemble = EnsembleModule(Named(), members, combine={"logits": "probabilities"})
    x, y = batches(loader(40))
    value = torch.stack([member(x)["value"] for member in members]).mean(0)[:, 0]
    mean = torch.stack([member(x)["logits"].softmax(1) for member in members]).mean(0)
    found = validated(ensemble)
    assert found["val_mse"] == pytest.approx(
        nn.functional.mse_loss(value, y.float()).item(), rel=1e-5
    )
    expected = nn.functional.nll_loss(mean.log(), y).item()
    assert found["val_ce"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("callbacks", [[], [EMAWeights(0.5)]])
def test_members_from_checkpoints_modules_and_state_dicts(callbacks):
    paths = []
    for seed in range(2):
        settings = {**QUIET, "max_epochs": 1, "callbacks": copy.deepcopy(callbacks)}
        trainer = Trainer(**settings)
        trainer.fit(classifier(seed), loader(), loader(8))
        paths.append(f"member{seed}.ckpt")
        trainer.save_checkpoint(paths[-1])
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    modules = [classifier(9) for _ in states]
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)
    found = [validated(EnsembleModule(Classifier(), m)) for m in (paths, states, modules)]
    assert found[0] == found[1] == found[2]


class Trap:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_runs_code_is_not_loaded(capsys):
    torch.save({"state_dict": {}, "hyper_parameters": Trap()}, "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt.*more than tensors"):
        EnsembleModule(Classifier(), ["bad.ckpt"])
    torch.save({"ensemble": {}, "settings": Trap()}, "bad.pt")
    with pytest.raises(pickle.UnpicklingError):
        EnsembleModule.load("bad.pt", Classifier())
    assert "run" not in capsys.readouterr().out


def test_it_is_saved_to_and_loaded_from_one_file():
    ensemble = EnsembleModule(Classifier(), [classifier(seed) for seed in range(3)])
    ensemble.save("ensemble.pt")
    loaded = EnsembleModule.load("ensemble.pt", Classifier())
    assert loaded.num_members == 3
    assert validated(loaded) == validated(ensemble)
    assert torch.equal(loaded.member(1)["net.0.weight"], ensemble.member(1)["net.0.weight"])
    torch.save({}, "other.pt")
    with pytest.raises(ValueError, match="not a file of EnsembleModule"):
        EnsembleModule.load("other.pt", Classifier())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_have_hooks_of_their_own(copied):
    ensemble = EnsembleModule(Classifier(), [classifier(0), classifier(1)])
    other = copied(ensemble)
    with torch.no_grad():
        for weight in other._weights:
            weight.zero_()
    assert validated(other)["val_loss"] == pytest.approx(torch.tensor(3.0).log().item())
    assert validated(ensemble)["val_loss"] != validated(other)["val_loss"]


def test_members_stay_still_and_cannot_be_trained():
    ensemble = EnsembleModule(Classifier(), [classifier(0), classifier(1)])
    before = {k: v.clone() for k, v in ensemble.state_dict().items()}
    validated(ensemble)
    assert all(torch.equal(v, before[k]) for k, v in ensemble.state_dict().items())
    with pytest.raises(Exception, match="training_step"):
        Trainer(**QUIET, max_epochs=1).fit(ensemble, loader())


class Torn(LightningModule):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(4, 3)

    def validation_step(self, batch, batch_idx):
        return self.two(self.one(batch[0]))


def test_what_makes_no_ensemble_is_named():
    with pytest.raises(ValueError, match=r"members=\[\]"):
        EnsembleModule(Classifier(), [])
    with pytest.raises(ValueError, match="combine='votes'"):
        EnsembleModule(Classifier(), [Classifier()], combine="votes")
    with pytest.raises(ValueError, match="same architecture"):
        EnsembleModule(Classifier(), [Classifier(), Classifier(features=7)])
    with pytest.raises(ValueError, match=r"Torn has no forward.*one, two"):
        EnsembleModule(Torn(), [Torn()])
    with pytest.raises(ValueError, match="output_of='three'"):
        EnsembleModule(Torn(), [Torn()], output_of="three")


def test_steps_that_call_nothing_that_is_averaged_are_told():
    class Around(Classifier):
        def validation_step(self, batch, batch_idx):
            outputs = self.net[2](self.net[1](self.net[0](batch[0])))
            self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]))

    with pytest.raises(ValueError, match=r"validation_step.*output_of"):
        validated(EnsembleModule(Around(), [Around()]))


def test_a_part_may_be_named_where_all_else_is_the_same():
    def torn(seed, one=0):
        torch.manual_seed(one)
        made = Torn()
        torch.manual_seed(seed)
        nn.init.normal_(made.two.weight)
        return made

    x = batches(loader(40))[0]
    members = [torn(1), torn(2)]
    ensemble = EnsembleModule(torn(3, one=4), members, output_of="two", combine="mean")
    expected = torch.stack([m.two(m.one(x)) for m in members]).mean(0)
    with ensemble._averaged():
        torch.testing.assert_close(ensemble.model.validation_step((x, None), 0), expected)
    assert Trainer(**QUIET).validate(ensemble, loader(40), verbose=False) == [{}]
    with pytest.raises(ValueError, match=r"differ in one\.weight, which lies outside"):
        EnsembleModule(Torn(), [torn(1), torn(2, one=5)], output_of="two")


def test_64_bit_and_bfloat16():
    members = [classifier(0), classifier(1)]
    data = DataLoader(TensorDataset(*batches(loader(40))), 40)
    single = validated(EnsembleModule(Classifier(), members))["val_loss"]
    for precision, tolerance in (("64-true", 1e-6), ("bf16-mixed", 0.05), ("bf16-true", 0.1)):
        trainer = Trainer(**QUIET, precision=precision)
        [found] = trainer.validate(EnsembleModule(Classifier(), members), data, verbose=False)
        assert found["val_loss"] == pytest.approx(single, rel=tolerance)


def test_independent_labels_are_judged_by_the_mean_of_their_probabilities():
    class Labels(Classifier):
        def validation_step(self, batch, batch_idx):
            outputs, targets = self(batch[0]), nn.functional.one_hot(batch[1], 3).float()
            self.log("val_loss", nn.functional.binary_cross_entropy_with_logits(outputs, targets))

    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append(Labels())
        nn.init.normal_(members[-1].net[2].weight)
    x, y = batches(loader(40))
    mean = torch.stack([member(x).sigmoid() for member in members]).mean(0)
    expected = nn.functional.binary_cross_entropy(mean, nn.functional.one_hot(y, 3).float())
    found = validated(EnsembleModule(Labels(), members, combine="binary_probabilities"))
    assert found["val_loss"] == pytest.approx(expected.item(), rel=1e-5)
