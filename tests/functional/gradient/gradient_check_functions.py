"""Hand-written Functions: right ones, wrong ones, and those that are not meant as derivatives."""

import torch
from torch.autograd import Function
from torch.nn import functional


def function(name, forward, backward):
    """A Function that keeps its tensor arguments; ``backward`` gets the gradient and these."""

    def saving(ctx, *args):
        ctx.save_for_backward(*(a for a in args if isinstance(a, torch.Tensor)))
        return forward(*args)

    members = {
        "forward": staticmethod(saving),
        "backward": staticmethod(lambda ctx, *grads: backward(*grads, *ctx.saved_tensors)),
        "__module__": __name__,
    }
    return type(name, (Function,), members)


def centre(x):
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)


def centre_backward(g, x):
    n, y = x.shape[-1], centre(x)
    along = (g * y).sum(-1, keepdim=True) / (n - 1)
    return (g - g.mean(-1, keepdim=True) - y * along) / x.std(-1, keepdim=True)


# name: the class, and how many arguments it has
RIGHT = {
    "cube": (function("Cube", lambda x: x**3, lambda g, x: 3 * g * x**2), 1),
    "sine": (function("Sine", torch.sin, lambda g, x: g * x.cos()), 1),
    "relu": (function("Relu", torch.relu, lambda g, x: g * (x > 0)), 1),
    "elu": (function("Elu", functional.elu, lambda g, x: torch.where(x > 0, g, g * x.exp())), 1),
    "product": (function("Product", torch.mul, lambda g, x, w: (g * w, g * x)), 2),
    "centre": (function("Centre", centre, centre_backward), 1),
    "norm": (function("Norm", lambda x: x.norm(), lambda g, x: g * x / x.norm()), 1),
    "two_outputs": (
        function("Two", lambda x: (x.sin(), x**2), lambda g, h, x: g * x.cos() + 2 * h * x),
        1,
    ),
}
WRONG = {
    "factor": (function("Factor", lambda x: x**3, lambda g, x: 2 * g * x**2), 1),
    "sign": (function("Sign", torch.cos, lambda g, x: g * x.sin()), 1),
    "missing_term": (
        function("Term", lambda x: x * x.sigmoid(), lambda g, x: g * x.sigmoid()),
        1,
    ),
    "negative_only": (
        function("Negative", functional.elu, lambda g, x: torch.where(x > 0, g, 0.7 * g)),
        1,
    ),
    "leak_forgotten": (
        function("Leak", lambda x: functional.leaky_relu(x, 0.1), lambda g, x: g * (x > 0)),
        1,
    ),
    "half_a_relu": (function("Half", torch.relu, lambda g, x: 0.5 * g * (x > 0)), 1),
    "second_input": (function("Second", torch.mul, lambda g, x, w: (g * w, 0 * g)), 2),
    "second_input_none": (function("NoneGiven", torch.mul, lambda g, x, w: (g * w, None)), 2),
    "mean_only": (
        function(
            "MeanOnly",
            centre,
            lambda g, x: (g - g.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
        ),
        1,
    ),
    "incoming_ignored": (function("Ignored", lambda x: (x**2).sum(), lambda g, x: 2 * x), 1),
    "pole": (function("Pole", lambda x: 1 / x, lambda g, x: -g / x.abs()), 1),
    "second_output": (function("Lost", lambda x: (x.sin(), x**2), lambda g, h, x: g * x.cos()), 1),
}
BY_DESIGN = {
    "rounding": (function("Round", torch.round, lambda g, x: g), 1),
    "straight_through_sign": (function("Binary", torch.sign, lambda g, x: g * (x.abs() <= 1)), 1),
    "clamp": (function("Clamp", lambda x: x.clamp(-0.5, 0.5), lambda g, x: g), 1),
    "reversal": (function("Reversal", lambda x: x.view_as(x), lambda g, x: -0.3 * g), 1),
    "clipping": (function("Clipping", lambda x: x.clone(), lambda g, x: g.clamp(-0.1, 0.1)), 1),
    "safe_exp": (
        function("SafeExp", torch.exp, lambda g, x: (g * x.exp()).clamp(-0.05, 0.05)),
        1,
    ),
    "xnor": (function("Xnor", lambda x: x.sign() * x.abs().mean(), lambda g, x: g), 1),
    "per_tensor_scale": (
        function("Scaled", lambda x: (x / x.abs().max() * 7).round() / 7, lambda g, x: g),
        1,
    ),
    "learned_step": (
        function(
            "LSQ",
            lambda x, s: (x / s).round() * s,
            lambda g, x, s: (g, g * ((x / s).round() - x / s)),
        ),
        2,
    ),
    "spike": (
        function(
            "Spike",
            lambda x: ((x > 0).to(x), 0.9 * x - (x > 0).to(x)),
            lambda g, h, x: g / (1 + x.abs()) ** 2 + 0.9 * h,
        ),
        1,
    ),
    "nearest_code": (
        function(
            "Nearest",
            lambda x, w: w[torch.cdist(x, w).argmin(1)],
            lambda g, x, w: (g, torch.zeros_like(w)),
        ),
        2,
    ),
    "aux_loss": (
        function("Aux", lambda x, w: x.view_as(x), lambda g, x, w: (g, torch.ones_like(w))),
        2,
    ),
}
