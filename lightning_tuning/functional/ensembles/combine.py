"""How the outputs of an ensemble's members become one output, and how much they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from lightning_tuning.functional.checks import choice

Combine = Literal["probabilities", "binary_probabilities", "mean"]
CombineByName = Combine | Mapping[str, Combine]


def check_combine(how: CombineByName) -> None:
    """Check how outputs are to be combined.

    Raises:
        ValueError: It is none of the kinds, or one that is given by name is not.
    """
    for kind in how.values() if isinstance(how, Mapping) else [how]:
        choice("combine", kind, get_args(Combine))


def combine(outputs: Tensor, how: Combine, *, class_dim: int = 1) -> Tensor:
    """Return the output of an ensemble, of the kind that one member puts out.

    - ``"probabilities"`` takes logits of classes and returns ``log(mean(softmax(outputs)))``:
      logits whose softmax is the mean of the members' probabilities, so that the cross-entropy, the
      accuracy and every metric that takes logits are those of the averaged probabilities.
    - ``"binary_probabilities"`` takes logits of independent labels and returns
      ``logit(mean(sigmoid(outputs)))``.
    - ``"mean"`` takes values (a regression) or whatever is to be averaged as it is, logits among
      it.

    Averaging probabilities is the usual ensemble (Lakshminarayanan et al. 2017).

    Args:
        outputs: Shape (members, ...), one output of a member being (examples, classes, ...).
        how: The kind of the outputs.
        class_dim: Dimension of the classes in the output of one member.

    Returns:
        Shape (...), in the type of ``outputs``.

    Raises:
        ValueError: The output has no two classes along ``class_dim``.

    Example:
        >>> members = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
        >>> combine(members, "probabilities").exp()
        tensor([[0.7000, 0.3000]])
    """
    if how == "mean":
        return outputs.mean(0)
    members = math.log(len(outputs))
    precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if how == "binary_probabilities":
        yes = functional.logsigmoid(precise).logsumexp(0)
        no = functional.logsigmoid(-precise).logsumexp(0)
        return (yes - no).to(outputs.dtype)
    dim = class_dim + 1 if class_dim >= 0 else class_dim
    if outputs.ndim <= max(dim, -dim) or outputs.shape[dim] < 2:
        raise ValueError(
            "combine='probabilities' needs logits of two classes or more along class_dim="
            f"{class_dim}, and the output has shape {tuple(outputs.shape[1:])}; a regression needs"
            " combine='mean', single logits 'binary_probabilities'"
        )
    logs = precise.log_softmax(dim).logsumexp(0) - members
    return logs.to(outputs.dtype)


def combine_outputs(outputs: Sequence[Any], how: CombineByName, *, class_dim: int = 1) -> Any:
    """Return the output of an ensemble where a member puts out a tensor, a dict or a tuple.

    Args:
        outputs: The output of each member.
        how: The kind of the output; for a dict or tuple with several tensors, the kind by name (by
            ``"0"``, ``"1"`` ... in a tuple). Tensors of floats that are not named are averaged;
            anything else must be the same for all members.
        class_dim: Dimension of the classes in the output of one member.

    Raises:
        ValueError: One kind is given for several tensors, or a name that is not there, or members
            differ where nothing can be averaged.

    Example:
        >>> outputs = [{"logits": torch.zeros(1, 2), "value": torch.tensor([v])} for v in (1., 3.)]
        >>> combine_outputs(outputs, {"logits": "probabilities"})["value"]
        tensor([2.])
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if isinstance(how, Mapping):
            raise ValueError(
                f"combine={dict(how)} names outputs, but the output is one tensor; give its kind"
                " alone, such as 'probabilities'"
            )
        return combine(torch.stack(list(outputs)), how, class_dim=class_dim)
    named = [_by_name(output) for output in outputs]
    kinds = _kinds(named[0], how)
    merged = {
        name: _merged([output[name] for output in named], kinds.get(name, "mean"), name, class_dim)
        for name in named[0]
    }
    if isinstance(first, Mapping):
        rebuild: Any = type(first)
        return rebuild(**merged) if hasattr(first, "to_tuple") else rebuild(merged)
    values = list(merged.values())
    make: Any = type(first)
    return make(*values) if hasattr(first, "_fields") else make(values)


def disagreement(outputs: Tensor, how: Combine, *, class_dim: int = 1) -> Tensor:
    """Return how much the members of an ensemble differ; 0 if they are all the same.

    For classes and labels that is the share of predictions in which two members differ, averaged
    over all pairs (Fort et al. 2019); for values, the root of their mean variance over members
    divided by the deviation of the ensemble's output over examples.

    Args:
        outputs: Shape (members, examples, ...).
        how: The kind of the outputs; see :func:`combine`.
        class_dim: Dimension of the classes in the output of one member.

    Returns:
        A scalar, on the device of ``outputs``.

    Example:
        >>> votes = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[2.0, 1.0], [2.0, 1.0]]])
        >>> disagreement(votes, "probabilities")
        tensor(0.5000)
    """
    members = len(outputs)
    if members < 2:
        return outputs.new_zeros((), dtype=torch.float32)
    if how == "mean":
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        spread = precise.var(0).mean().sqrt()
        return spread / precise.mean(0).std(unbiased=False).clamp(min=1e-12)
    if how == "probabilities":
        votes = outputs.argmax(class_dim + 1 if class_dim >= 0 else class_dim)
    else:
        votes = outputs > 0
    differ = (votes[:, None] != votes[None]).float().mean()
    # no member differs from itself
    return differ * members / (members - 1)


def _by_name(output: Any) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    if isinstance(output, (tuple, list)):
        return {str(index): value for index, value in enumerate(output)}
    raise ValueError(
        f"an output of type {type(output).__name__} cannot be averaged; let forward return a"
        " tensor, a dict or a tuple of tensors"
    )


def _kinds(output: Mapping[str, Any], how: CombineByName) -> Mapping[str, Combine]:
    if isinstance(how, Mapping):
        missing = [name for name in how if name not in output]
        if missing:
            raise ValueError(
                f"combine={dict(how)}: there is no output {missing[0]!r}, there are"
                f" {', '.join(map(repr, output))}"
            )
        return how
    floats = [name for name, value in output.items() if _averages(value)]
    if len(floats) > 1 and how != "mean":
        raise ValueError(
            f"combine={how!r} is one kind for several outputs ({', '.join(map(repr, floats))});"
            f" give it by name, such as {{{floats[0]!r}: {how!r}}}"
        )
    return dict.fromkeys(floats, how)


def _averages(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _merged(values: Sequence[Any], how: Combine, name: str, class_dim: int) -> Any:
    if _averages(values[0]):
        return combine(torch.stack(list(values)), how, class_dim=class_dim)
    first = values[0]
    same = all(
        torch.equal(first, value) if isinstance(first, Tensor) else first == value
        for value in values[1:]
    )
    if not same:
        raise ValueError(
            f"output {name!r} is of type {type(first).__name__} and differs between members, so"
            " that it cannot be averaged; leave it out of what forward returns"
        )
    return first
