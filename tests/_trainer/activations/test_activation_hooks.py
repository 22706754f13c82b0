"""What is seen of layers, however a program calls them, and that nothing is left behind."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_tuning._trainer.activations.activation_calls import StepTransfer, display_names
from lightning_tuning._trainer.activations.activation_hooks import ActivationRecorder
from lightning_tuning._trainer.activations.activation_layers import Choice, first_tensor
from lightning_tuning._trainer.activations.attention_rows import attention_rows
from lightning_tuning._trainer.activations.weight_gradients import WeightGradients


class Program(nn.Module):
    """Runs a function with its parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, inputs):
        return self.run(self, inputs)


def measured(program, inputs, *, layers=None, gradients=True, transfer=None, loss=None):
    """One forward and backward pass, looked at; rows by name, and gradients of weights."""
    recorder = ActivationRecorder(program, Choice(layers), gradients=gradients)
    recorder.put_into_graphs()
    recorder.inputs = True
    recorder.begin()
    try:
        value = program(inputs).square().mean() if loss is None else loss(program, inputs)
        value.backward()
        recorder.read_weight_gradients(list(program.parameters()))
    finally:
        recorder.end()
    rows, weights, _, _ = (transfer or StepTransfer(32, {})).run(
        recorder.calls.values(), recorder.weights.found.values(), scale=None, loss=value
    )
    names = display_names(recorder.calls)
    recorder.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in program.modules())
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    return {names[calls.key]: row for calls, row in rows}, {w.name: w for w in weights}


def test_numbers_are_those_of_plain_torch():
    net = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3))
    inputs = torch.randn(16, 5)
    rows, weights = measured(net, inputs)
    first = net[0](inputs)
    hidden = net[1](first)
    last = net[2](hidden)
    for tensor in (first, hidden, last):
        tensor.retain_grad()
    net.zero_grad()
    last.square().mean().backward()
    assert list(rows) == ["0", "1", "2"]
    for row, output in zip(rows.values(), (first, hidden, last), strict=True):
        tensor, gradient = output.detach(), output.grad
        assert row.mean == pytest.approx(float(tensor.mean()), rel=1e-4)
        assert row.std == pytest.approx(float(tensor.std(correction=0)), rel=1e-4)
        assert (row.low, row.high) == (float(tensor.min()), float(tensor.max()))
        assert row.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
        assert sum(row.activations.counts) == sum(row.gradients.counts) == tensor.numel()
    assert rows["0"].input_rms == pytest.approx(float(inputs.square().mean().sqrt()), rel=1e-5)
    assert weights["0.weight"].norm == pytest.approx(float(net[0].weight.grad.norm()), rel=1e-5)
    assert set(weights) == {"0.weight", "2.weight"}


def test_weights_and_gradients_are_the_same_bit_for_bit():
    def train(look):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        net = nn.Sequential(block, nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 4))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            inputs = torch.randn(6, 3, 8, 8)
            if look:
                measured(net, inputs)
            else:
                net(inputs).square().mean().backward()
            optimizer.step()
        return torch.cat([value.double().flatten() for value in net.state_dict().values()])

    assert torch.equal(train(True), train(False))


def test_what_stands_before_an_inplace_activation_is_seen_as_it_was():
    net = nn.Sequential(nn.Linear(4, 50), nn.ReLU(inplace=True), nn.Linear(50, 1))
    rows, _ = measured(net, torch.randn(32, 4))
    assert rows["0"].low < 0 <= rows["1"].low


def test_functions_are_named_after_the_layer_before():
    def forward(net, x):
        x = F.relu(net.norm(net.fc(x)))
        x = torch.tanh(net.out(x))
        return torch.sigmoid(x)

    net = Program(forward, fc=nn.Linear(4, 8), norm=nn.LayerNorm(8), out=nn.Linear(8, 2))
    rows, _ = measured(net, torch.randn(16, 4))
    assert {name: row.kind for name, row in rows.items()} == {
        "fc": "weight",
        "norm.relu": "relu",
        "out": "weight",
        "out.tanh": "tanh",
        "out.sigmoid": "sigmoid",
    }


def test_a_shared_module_is_a_layer_at_each_place_but_not_at_each_call():
    def forward(net, x):
        x = net.act(net.b(net.act(net.a(x))))
        return net.c(x) + net.c(x * 2)

    parts = {name: nn.Linear(4, 4) for name in "abc"}
    rows, _ = measured(Program(forward, act=nn.ReLU(), **parts), torch.randn(8, 4))
    assert list(rows) == ["a", "a.act", "b", "b.act", "c"]
    assert rows["c"].calls == 2
    assert rows["a.act"].calls == 1


def test_many_calls_in_a_step_are_added_up():
    def forward(net, x):
        hidden = torch.zeros(x.size(0), 6)
        for time in range(x.size(1)):
            hidden = net.cell(x[:, time], hidden)
            kept.append(hidden)
        return hidden

    kept = []
    rows, _ = measured(Program(forward, cell=nn.GRUCell(3, 6)), torch.randn(5, 9, 3))
    outputs = torch.stack(kept).detach()
    assert rows["cell"].calls == 9
    assert rows["cell"].mean == pytest.approx(float(outputs.mean()), rel=1e-4)
    assert rows["cell"].high == float(outputs.max())
    assert sum(rows["cell"].activations.counts) == 4 * 30  # calls 1, 2, 4 and 8


def test_raw_weights_are_layers():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = nn.Parameter(torch.randn(4, 8))
            self.w2 = nn.Parameter(torch.randn(8, 2))

        def forward(self, x):
            return torch.relu(x @ self.w1) @ self.w2

    rows, weights = measured(Raw(), torch.randn(16, 4))
    assert list(rows) == ["w1", "w1.relu", "w2"]
    assert set(weights) == {"w1", "w2"}


@dataclasses.dataclass
class Output:
    ids: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: (torch.ones(2, dtype=torch.long), t),
        lambda t: {"mask": None, "hidden": [t]},
        lambda t: Output(torch.ones(1, dtype=torch.bool), t),
    ],
)
def test_outputs_in_containers(wrap):
    class Wraps(nn.Linear):
        def forward(self, x):
            return wrap(super().forward(x))

    net = Program(lambda net, x: first_tensor(net.fc(x)), fc=Wraps(4, 6))
    rows, _ = measured(net, torch.randn(8, 4))
    assert rows["fc"].gradient_norm > 0


def test_outputs_that_are_no_numbers_are_left_alone():
    class Tokens(nn.Module):
        def forward(self, x):
            return (x > 0).long()

    class Nothing(nn.Module):
        def forward(self, x):
            return None

    def forward(net, x):
        net.nothing(x)
        return net.embed(net.tokens(x)).mean(1)

    net = Program(
        forward, tokens=Tokens(), nothing=Nothing(), embed=nn.Embedding(2, 4, sparse=True)
    )
    rows, weights = measured(net, torch.randn(8, 5), layers="all")
    assert list(rows) == ["embed"]
    assert weights["embed.weight"].norm > 0


def test_recurrent_layers_and_attention():
    def forward(net, x):
        x, _ = net.lstm(x)
        x, _ = net.attention(x, x, x)
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    net = Program(
        forward,
        lstm=nn.LSTM(3, 8, batch_first=True),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        never=nn.Linear(2, 2),
    )
    rows, _ = measured(net, torch.randn(4, 6, 3))
    assert list(rows) == ["lstm", "attention", "attention.softmax"]
    assert rows["attention.softmax"].saturated == 0.0
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    rows, _ = measured(nn.Sequential(nn.LSTM(3, 8)), packed, loss=lambda n, x: n(x)[0].data.sum())
    assert sum(rows["0"].activations.counts) == 7 * 8


def test_attention_rows_are_those_of_softmax():
    query, key = torch.randn(2, 3, 20, 4) * 6, torch.randn(2, 3, 20, 4)
    mask = torch.rand(20, 20) < 0.7
    mask |= torch.eye(20, dtype=torch.bool)
    added = torch.zeros(20, 20).masked_fill(~mask, -math.inf)
    for given in (mask, added):
        sharp, rows = attention_rows(query, key, mask=given, causal=False, scale=None)
        weights = torch.softmax((query @ key.mT / 2).masked_fill(~mask, -math.inf), -1)[0]
        assert int(rows) == 3 * int((mask.sum(-1) > 2).sum())
        many = mask.sum(-1) > 2
        assert int(sharp) == int((weights.amax(-1) > 0.99)[:, many].sum())
    _, rows = attention_rows(query, key, mask=None, causal=True, scale=1.0)
    assert int(rows) == 3 * 18


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kdim", [None, 5])
@pytest.mark.parametrize("masked", ["", "attn", "attn of heads", "padding", "both", "causal"])
def test_attention_inside_of_its_layer_is_that_of_its_weights(batch_first, kdim, masked):
    torch.manual_seed(4)
    layer = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=batch_first)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.normal_(std=0.3 if "bias" in name else 1.0)
    batch, length, keys = 3, 7, 7 if masked == "causal" else 9
    query, key = torch.randn(batch, length, 8), torch.randn(batch, keys, kdim or 8)
    options = {}
    if masked in ("attn", "both"):
        options["attn_mask"] = torch.rand(length, keys) < 0.4
    if masked == "attn of heads":
        options["attn_mask"] = torch.randn(batch * 2, length, keys)
    if masked in ("padding", "both"):
        options["key_padding_mask"] = torch.arange(keys).expand(batch, keys) >= 6
    if masked == "causal":
        options["attn_mask"] = nn.Transformer.generate_square_subsequent_mask(length)
        options["is_causal"] = True
    given = [t if batch_first else t.transpose(0, 1) for t in (query, key, key)]

    def forward(net, x):
        return net.layer(*given, need_weights=False, **options)[0]

    rows, _ = measured(Program(forward, layer=layer), torch.zeros(1))
    weights = layer(*given, average_attn_weights=False, **options)[1][0]
    many = (weights > 0).sum(-1) > 2
    assert list(rows) == ["layer"]
    sharp = (weights.amax(-1) >= 0.99) & many
    assert 0 < int(sharp.sum()) < int(many.sum())
    assert rows["layer"].saturated == pytest.approx(int(sharp.sum()) / int(many.sum()))


def test_attention_that_cannot_be_followed_is_not_judged():
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        net = nn.MultiheadAttention(8, 2, **options)
        net = Program(lambda net, x: net.layer(x, x, x)[0], layer=net)
        rows, _ = measured(net, torch.randn(5, 3, 8))
        assert math.isnan(rows["layer"].saturated)
    teacher = nn.MultiheadAttention(8, 2).requires_grad_(False)
    student = nn.MultiheadAttention(8, 2, add_zero_attn=True)

    def forward(net, x):
        return net.student(net.teacher(x, x, x)[0], x, x)[0]

    rows, _ = measured(Program(forward, teacher=teacher, student=student), torch.randn(5, 8))
    assert not math.isnan(rows["teacher"].saturated)
    assert math.isnan(rows["student"].saturated)


def test_what_a_teacher_computes_is_not_seen():
    def forward(net, x):
        with torch.no_grad():
            net.teacher(x)
            F.relu(net.student(x))
        return net.student(x)

    net = Program(forward, teacher=nn.Linear(4, 4), student=nn.Linear(4, 4))
    rows, _ = measured(net, torch.randn(8, 4))
    assert list(rows) == ["student"]
    assert rows["student"].calls == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_part_counts_once(reentrant):
    def forward(net, x):
        return net.out(checkpoint(net.part, x, use_reentrant=reentrant))

    part = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.ReLU())
    net = Program(forward, part=part, out=nn.Linear(4, 2))
    inputs = torch.randn(8, 4, requires_grad=True)
    rows, _ = measured(net, inputs)
    plain, _ = measured(Program(lambda n, x: n.out(n.part(x)), part=part, out=net.out), inputs)
    assert set(rows) == set(plain)
    for name, row in rows.items():
        assert row.calls == 1
        assert row.mean == plain[name].mean
        assert row.gradient_norm == plain[name].gradient_norm


def test_units_are_channels_after_a_convolution_and_features_after_a_linear_layer():
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    net = nn.Sequential(
        nn.Conv2d(1, 7, 3), nn.ReLU(), Tokens(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 1)
    )
    with torch.no_grad():
        net[0].bias[:2] = -1e3
        net[3].bias[:4] = -1e3
    transfer, seen = StepTransfer(32, {}), None
    for _ in range(window_of(4)):
        seen, _ = measured(net, torch.randn(4, 1, 6, 6), transfer=transfer)
    assert seen["1"].dead == pytest.approx(2 / 7)
    assert seen["4"].dead == pytest.approx(4 / 5)


def window_of(examples):
    from lightning_tuning._trainer.activations.silent_units import window

    return window(examples)


def test_layers_are_chosen_by_name_type_function_or_all():
    def forward(net, x):
        return net.norm(net.body(x)).sigmoid()

    body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    net = Program(forward, body=body, norm=nn.BatchNorm1d(4))
    inputs = torch.randn(8, 4)
    for layers, names in (
        (None, ["body.0", "body.1", "body.2", "norm.sigmoid"]),
        ("all", ["body.0", "body.1", "body.2", "norm", "norm.sigmoid"]),
        (["Linear"], ["body.0", "body.2"]),
        (["body", "norm"], ["body", "norm"]),
        (["body.*"], ["body.0", "body.1", "body.2"]),
        (["sigmoid"], ["norm.sigmoid"]),
    ):
        assert list(measured(net, inputs, layers=layers)[0]) == names
    with pytest.raises(ValueError, match=r"'head' is neither .* 'body'"):
        ActivationRecorder(net, Choice(["head"]), gradients=True)


def test_values_that_are_not_finite_are_told():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    net[0].weight.data[0] = math.nan
    rows, _ = measured(net, torch.ones(4, 2))
    assert not rows["0"].is_finite
    assert rows["0"].activations.non_finite == 4


def test_a_copy_in_the_middle_of_a_step_shares_the_recorder():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    recorder = ActivationRecorder(net, Choice(None), gradients=True)
    recorder.begin()
    copied = copy.deepcopy(net)
    recorder.end()
    copied(torch.ones(1, 2))
    assert recorder.calls == {} or all(c.calls for c in recorder.calls.values())


def test_functions_of_torch_func_are_left_alone():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def loss(net, x):
        derivative = torch.func.vmap(torch.func.grad(lambda one: net(one).sum()))(x)
        return (derivative.square().sum(1) + net(x).square().squeeze(1)).mean()

    rows, _ = measured(net, torch.randn(8, 2), loss=loss)
    assert rows["0"].calls == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_inside_a_compiled_module_there_is_no_graph_break_and_no_other_bit(backend):
    from torch._dynamo.utils import counters

    def train(look):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        program = Program(lambda p, x: p.net(x), net=torch.compile(net, backend=backend))
        recorder = ActivationRecorder(program, Choice(None), gradients=True)
        if look:
            recorder.put_into_graphs()
        optimizer = torch.optim.SGD(program.parameters(), 0.1)
        seen = []
        for step in range(6):
            if look and step % 2 == 0:
                recorder.begin()
            optimizer.zero_grad()
            program(torch.randn(16, 4)).square().mean().backward()
            recorder.read_weight_gradients(list(program.parameters()))
            optimizer.step()
            recorder.end()
            seen.append([key[0] for key in recorder.calls])
            recorder.calls = {}
        recorder.remove()
        weights = torch.cat([p.detach().flatten() for p in program.parameters()])
        return weights, seen, dict(counters["graph_break"]), counters["stats"]["unique_graphs"]

    plain, _, _, graphs = train(False)
    weights, seen, breaks, more = train(True)
    assert torch.equal(plain, weights)
    assert seen == [["net.0", "net.2", "net.3"], []] * 3
    assert not breaks
    assert (graphs, more) == (1, 2)
    torch._dynamo.reset()


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", ["encoder", "attention"])
def test_a_teacher_on_its_fast_path_says_the_same_bit_for_bit(kind):
    def forward(net, x):
        with torch.no_grad():
            if kind == "encoder":
                said.append(net.teacher(x, src_key_padding_mask=hidden))
            else:
                said.append(net.teacher(x, x, x, key_padding_mask=hidden)[0])
        return torch.relu(net.student(x))

    said, hidden = [], torch.zeros(4, 6, dtype=torch.bool)
    hidden[1:, 3:] = True
    teacher = nn.MultiheadAttention(8, 2, batch_first=True).eval().requires_grad_(False)
    teacher = encoder() if kind == "encoder" else teacher
    net = Program(forward, teacher=teacher, student=nn.Linear(8, 8))
    inputs = torch.randn(4, 6, 8)
    net(inputs)
    rows, _ = measured(net, inputs)
    assert torch.equal(*said)
    assert list(rows) == ["student"]
    teacher.train()  # then there is no fast path, and functions are seen
    assert "student.relu" in measured(net, inputs)[0]


def test_a_weight_that_a_module_returns_keeps_no_hook():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))

        def forward(self):
            return self.table

    net = Program(lambda net, x: net.fc(x + net.place()), place=Position(), fc=nn.Linear(4, 2))
    rows, weights = measured(net, torch.randn(8, 3, 4))
    assert not net.place.table._backward_hooks
    assert rows["place"].calls == 1
    assert weights["place.table"].norm > 0


def test_a_second_observer_does_not_see_what_the_first_computes():
    def forward(net, x):
        hidden = net.fc(x)
        return torch.softmax(F.scaled_dot_product_attention(hidden, hidden, hidden), -1)

    net = Program(forward, fc=nn.Linear(4, 4))
    inputs = torch.randn(4, 6, 4)
    alone, _ = measured(net, inputs)
    outer = ActivationRecorder(net, Choice(None), gradients=True)
    outer.begin()
    inner, _ = measured_inside(net, inputs)
    outer.end()
    rows, *_ = StepTransfer(32, {}).run(outer.calls.values(), [], scale=None, loss=None)
    seen = {calls.key[0]: (row.calls, row.mean, row.saturated) for calls, row in rows}
    assert seen["fc.softmax"] == tuple(
        getattr(alone["fc.softmax"], field) for field in ("calls", "mean", "saturated")
    )
    assert inner["fc.softmax"].mean == alone["fc.softmax"].mean


def measured_inside(net, inputs):
    """As :func:`measured`, under another recorder."""
    recorder = ActivationRecorder(net, Choice(None), gradients=True)
    recorder.begin()
    net(inputs).square().mean().backward()
    recorder.end()
    rows, *_ = StepTransfer(32, {}).run(recorder.calls.values(), [], scale=None, loss=None)
    return {calls.key[0]: row for calls, row in rows}, recorder


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_gradients_of_any_precision(kind):
    net = nn.Sequential(nn.Linear(4, 3, dtype=kind), nn.Tanh())
    # another precision in the same program
    program = Program(lambda p, x: p.out(p.net(x).float()), net=net, out=nn.Linear(3, 1))
    _, weights = measured(program, torch.randn(8, 4, dtype=kind))
    norms = {name: float(p.grad.double().norm()) for name, p in program.named_parameters()}
    for name in ("net.0.weight", "out.weight"):
        assert weights[name].norm == pytest.approx(norms[name], rel=1e-2)


def test_a_weight_without_a_part_in_this_process_has_a_norm_of_zero():
    weight = nn.Parameter(torch.randn(4, 2))
    rows = WeightGradients([("weight", weight)])
    index, values = torch.empty(1, 0, dtype=torch.long), torch.empty(0, 2)
    weight.grad = torch.sparse_coo_tensor(index, values, (4, 2), check_invariants=True)
    rows.read([weight])
    _, [found], _, _ = StepTransfer(32, {}).run([], rows.found.values(), scale=None, loss=None)
    assert (found.norm, found.gradients) == (0.0, None)


@pytest.mark.filterwarnings("ignore")
def test_inside_a_compiled_module_outputs_may_be_containers_or_nothing():
    class Wraps(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.wrap = wrap

        def forward(self, x):
            return self.wrap(x @ self.weight)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Wraps(lambda y: {"hidden": y})
            self.b = Wraps(lambda y: (None, y))
            self.c = Wraps(lambda y: None)

        def forward(self, x):
            self.c(x)
            return self.b(self.a(x)["hidden"])[1]

    torch._dynamo.reset()
    compiled = torch.compile(Net(), backend="eager", fullgraph=True)
    rows, _ = measured(Program(lambda p, x: p.net(x), net=compiled), torch.randn(8, 4))
    assert list(rows) == ["net.a", "net.b"]
    torch._dynamo.reset()


def test_a_compiled_encoder_has_no_hooks_that_validation_would_meet():
    program = Program(lambda p, x: p.net(x), net=torch.compile(encoder(), backend="eager"))
    recorder = ActivationRecorder(program, Choice(None), gradients=True)
    recorder.put_into_graphs()
    assert recorder.has_graph
    assert not any(module._forward_hooks for module in program.modules())
