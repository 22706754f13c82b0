"""How many queries of an attention look at one key alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_tuning.functional.activations.activation_stats import ACTIVATIONS

_QUERIES = 32
_MULTI_HEAD = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias"),
    *("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
    *("training", "key_padding_mask", "need_weights", "attn_mask", "use_separate_proj_weight"),
    *("q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v"),
    *("average_attn_weights", "is_causal"),
)


def attention_rows(
    query: Tensor, key: Tensor, *, mask: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor] | None:
    """Count queries that look at one key alone, and queries with more than two keys.

    Of the first example in the batch, for up to 32 queries of each head.

    Args:
        query: As ``scaled_dot_product_attention`` takes it, as are the others.
        key: The keys.
        mask: True or a number to be added.
        causal: Whether later keys are hidden.
        scale: Of the scores; None for one over the root of their length.

    Returns:
        Both counts on the device; None where the shapes are others.

    Example:
        >>> query = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]])
        >>> key = torch.tensor([[[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]]])
        >>> [int(n) for n in attention_rows(query, key, mask=None, causal=False, scale=None)]
        [1, 2]
    """
    if query.dim() < 2 or query.shape[:-2] != key.shape[:-2] or not _plain(query):
        return None
    length, keys = query.size(-2), key.size(-2)
    step = max(1, length // _QUERIES)
    first = (0,) * max(query.dim() - 3, 0)
    few, keyed = query[first][..., ::step, :].float(), key[first].float()
    scores = few @ keyed.transpose(-1, -2)
    scores = scores * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if mask is not None:
        mask = mask.detach().broadcast_to(*query.shape[:-1], keys)[first][..., ::step, :]
        hides = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if hides else scores + mask
    if causal:
        places = torch.arange(length, device=query.device)[::step, None]
        scores = scores.masked_fill(places < torch.arange(keys, device=query.device), -math.inf)
    return _sharp(scores)


def multi_head_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Count the same inside of ``multi_head_attention_forward``, which shows no call of its own.

    Queries and keys of the first example are projected once more.

    Args:
        args: As the function takes them.
        kwargs: The same.

    Returns:
        Both counts on the device; None where keys are added or given.
    """
    given = {**dict(zip(_MULTI_HEAD, args, strict=False)), **kwargs}
    added = ("bias_k", "bias_v", "static_k", "static_v")
    if given.get("add_zero_attn") or any(given.get(name) is not None for name in added):
        return None
    query, key, heads = given["query"].detach(), given["key"].detach(), int(given["num_heads"])
    of_query, of_key = _projections(given, query.size(-1))
    tensors = (query, key, of_query[0], of_key[0])
    if not _plain(query) or query.dim() not in (2, 3) or not all(map(_is_whole, tensors)):
        return None
    batched = query.dim() == 3
    query, key = (query[:, 0], key[:, 0]) if batched else (query, key)
    step = max(1, len(query) // _QUERIES)
    scores = _headed(query[::step], of_query, heads) @ _headed(key, of_key, heads).mT
    scores = scores / math.sqrt(query.size(-1) // heads)
    mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
    if mask is not None:
        mask = mask[:heads] if mask.dim() == 3 else mask
        scores = _without(scores, mask.detach()[..., ::step, :])
    if padding is not None:
        scores = _without(scores, (padding[0] if batched else padding).detach())
    return _sharp(scores)


def _projections(
    given: Mapping[str, Any], width: int
) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """Return weight and bias of queries and of keys."""
    if given.get("use_separate_proj_weight"):
        weights = [given["q_proj_weight"], given["k_proj_weight"]]
    else:
        weights = [given["in_proj_weight"][:width], given["in_proj_weight"][width : 2 * width]]
    bias = given["in_proj_bias"]
    biases = [None, None] if bias is None else [bias[:width], bias[width : 2 * width]]
    return (weights[0], biases[0]), (weights[1], biases[1])


def _headed(values: Tensor, projection: tuple[Tensor, Tensor | None], heads: int) -> Tensor:
    """Return (heads, positions, width of a head)."""
    weight, bias = projection
    bias = None if bias is None else bias.detach().float()
    projected = functional.linear(values.float(), weight.detach().float(), bias)
    return projected.view(len(values), heads, -1).transpose(0, 1)


def _without(scores: Tensor, mask: Tensor) -> Tensor:
    """Add a mask, or hide what it says; the other way round than for scaled dot products."""
    return scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def _sharp(scores: Tensor) -> tuple[Tensor, Tensor]:
    many = (scores > -math.inf).sum(-1) > 2
    sharp = torch.softmax(scores, -1).amax(-1) >= ACTIVATIONS["softmax"].high
    return (sharp & many).sum(), many.sum()


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is none of those that stand for shards or for many."""
    return type(tensor) in (Tensor, nn.Parameter)


def _plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_nested
