import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations

from lightning_tuning._trainer.filters.filter_layers import (
    LayerSearch,
    as_filters,
    as_images,
    check_layer,
    read_weight,
)

IMAGES = torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Module(LightningModule):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def search(module, *calls, batch=(IMAGES,), name=None, image_shape=None):
    """Call layers in that order, as a training step would."""
    found = LayerSearch(module, name, image_shape, batch)
    for layer, inputs in calls:
        module.get_submodule(layer)(inputs)
    found.close()
    return found


def flat(images):
    return images.flatten(1)


def test_the_layer_that_is_called_first_comes_before_the_first_of_the_module():
    module = Module(second=nn.Conv2d(3, 2, 3), first=nn.Conv2d(3, 4, 5))
    found = search(module, ("first", IMAGES), ("second", IMAGES))
    assert found.found() == ("first", module.first)
    assert torch.equal(found.inputs, IMAGES)
    assert search(module).found() == ("second", module.second)


def test_a_named_layer_is_taken():
    module = Module(a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 4, 5))
    found = search(module, ("a", IMAGES), ("b", IMAGES), name="b")
    assert found.found() == ("b", module.b)
    assert torch.equal(found.inputs, IMAGES)


def test_a_generator_comes_after_what_sees_the_data():
    module = Module(generator=nn.ConvTranspose2d(8, 3, 4), critic=nn.Conv2d(3, 4, 5))
    calls = ("generator", torch.rand(5, 8, 1, 1)), ("critic", IMAGES)
    assert search(module, *calls).found() == ("critic", module.critic)
    alone = Module(generator=nn.ConvTranspose2d(8, 3, 4))
    assert search(alone, calls[0]).found() == ("generator", alone.generator)


@pytest.mark.parametrize("shape", [(3, 12, 10), (12, 10, 3), (12, 10)])
def test_a_linear_layer_over_the_batchs_image_is_found(shape):
    images = torch.rand(5, *shape)
    module = Module(head=nn.Linear(7, 2), body=nn.Linear(images[0].numel(), 7))
    batch = {"images": images, "labels": torch.zeros(5, dtype=torch.long)}
    found = search(module, ("body", flat(images)), batch=batch)
    path, layer = found.found()
    assert path == "body"
    assert found.image_shape(layer) == shape
    assert as_images(found.inputs, shape).shape[2:] == (12, 10)


def test_a_linear_layer_over_an_unknown_shape_is_none():
    module = Module(body=nn.Linear(12, 7))
    rows = torch.rand(5, 12)
    assert search(module, ("body", rows), batch=[rows]).found() is None
    known = search(module, ("body", rows), batch=[rows], image_shape=[3, 4])
    assert known.found() == ("body", module.body)


def test_lazy_layers_are_known_after_their_first_call():
    module = Module(conv=nn.LazyConv2d(4, 5), head=nn.LazyLinear(2))
    assert search(module).found() is None
    assert search(module, ("conv", IMAGES)).found() == ("conv", module.conv)
    module = Module(head=nn.LazyLinear(2))
    assert search(module, ("head", flat(IMAGES))).found() == ("head", module.head)


def test_what_has_no_picture_is_passed_over():
    module = Module(mix=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), real=nn.Conv2d(4, 2, 3))
    assert search(module, ("mix", IMAGES)).found() == ("real", module.real)
    assert search(Module(words=nn.Embedding(9, 4), head=nn.Linear(4, 2))).found() is None


def test_inputs_are_a_few_examples_without_their_mean():
    module = Module(conv=nn.Conv2d(3, 2, 3))
    many = torch.rand(40, 3, 12, 10)
    found = search(module, ("conv", many), batch=[many])
    assert found.found() is not None
    assert len(found.inputs) == 8
    values = as_images(found.inputs, ())
    assert values.mean() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(np.diff(values), np.diff(many[:8].numpy()), atol=1e-6)


def test_no_hook_is_left():
    module = Module(conv=nn.Conv2d(3, 2, 3))
    found = LayerSearch(module, None, None, [IMAGES])
    assert found.watching
    assert len(module.conv._forward_pre_hooks) == 1
    found.close()
    assert not found.watching
    assert not module.conv._forward_pre_hooks


def test_a_compiled_module_gets_no_hook():
    module = Module(first=nn.Conv2d(3, 2, 3))
    module.first.compile(backend="eager")
    assert search(module, ("first", IMAGES)).found() == ("first", module.first)
    assert not module.first._forward_pre_hooks


def test_attention_layers_keep_their_fast_path():
    """A hook in one of them would end it, and padded places would get other numbers."""
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).eval()
    module = Module(teacher=layer, conv=nn.Conv2d(3, 2, 3))
    inputs = torch.rand(2, 4, 16)
    padded = torch.tensor([[False, False, True, True], [False] * 4])
    with torch.no_grad():
        alone = layer(inputs, src_key_padding_mask=padded)
        found = LayerSearch(module, None, (4, 4), [inputs])
        watched = layer(inputs, src_key_padding_mask=padded)
    assert torch.equal(alone, watched)
    assert len(module.conv._forward_pre_hooks) == 1
    found.close()


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 7), (4, 3, 7)),
        (nn.Conv2d(6, 4, (3, 5), groups=2), (4, 3, 3, 5)),
        (nn.Conv3d(1, 4, 2), (4, 1, 2, 2, 2)),
        (nn.ConvTranspose2d(4, 3, 5), (4, 3, 5, 5)),
        (nn.Conv2d(3, 4, 5).to(torch.bfloat16), (4, 3, 5, 5)),
        (nn.Conv2d(3, 4, 5, dtype=torch.complex64), (4, 3, 5, 5)),
        (nn.Conv2d(3, 300, 5), (256, 3, 5, 5)),
    ],
)
def test_weights_are_read_as_filters(layer, shape):
    filters = as_filters(read_weight(layer), ())
    assert filters.shape == shape
    expected = layer.weight.detach()
    expected = expected.real if expected.is_complex() else expected
    np.testing.assert_array_equal(filters, expected[:256].float().numpy())


def test_a_copy_is_read():
    layer = nn.Linear(12, 4)
    weight = read_weight(layer)
    with torch.no_grad():
        layer.weight.zero_()
    assert as_filters(weight, (3, 4)).shape == (4, 1, 3, 4)
    assert weight.abs().sum() > 0


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_reading_changes_no_parametrization(wrap):
    """Reading a weight with a spectral norm takes a step of its power method in training mode."""
    layer = wrap(nn.Conv2d(3, 4, 5))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert read_weight(layer).shape == (4, 3, 5, 5)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(child.training for child in layer.modules())


def test_a_name_that_is_none_is_refused_with_those_that_are():
    module = Module(conv=nn.Conv2d(3, 2, 3), act=nn.ReLU())
    check_layer(module, "conv", None)
    for name in ("cnv", "act"):
        with pytest.raises(ValueError, match=f"layer='{name}' is no layer.*there are conv"):
            check_layer(module, name, None)
