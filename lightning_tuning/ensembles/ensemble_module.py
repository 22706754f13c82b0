"""An ensemble as a module."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_tuning._trainer.ensembles.averaged_forward import (
    AveragedForward,
    callable_parts,
    stacked_weights,
)
from lightning_tuning._trainer.ensembles.evaluation_hooks import delegated_hooks
from lightning_tuning.functional.checkpoint_weights import saved_weights
from lightning_tuning.functional.ensembles.combine import CombineByName, check_combine

Member = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module
"""A checkpoint, a state dict, or a module."""


class EnsembleModule(LightningModule):
    """Several sets of weights of one module, evaluated as one model.

    ``trainer.validate``, ``test`` and ``predict`` run the module's own steps and hooks, and log
    what it logs; only its forward pass is that of all members, averaged. It is not trained.

    The steps must call ``self(...)``, or the one child that has all the weights, such as
    ``self.net(...)``. Its output is to be averaged: a tensor, or a dict or tuple of tensors.

    Args:
        model: The module; its own weights are not used.
        members: Checkpoints (of ``EMAWeights`` the averaged weights), state dicts or modules, all
            of the same architecture.
        combine: What the outputs are: ``"probabilities"`` for logits of classes,
            ``"binary_probabilities"`` for logits of independent labels, ``"mean"`` for values (a
            regression), or to average logits as they are. For dicts and tuples the kind by name.
            The formulas are those of :func:`lightning_tuning.combine`.
        class_dim: Dimension of the classes in the output of one member.
        output_of: The part of the module whose output is averaged, if it is neither of those above.
        vectorize: Run all members at once by ``torch.func.vmap`` instead of one after another: for
            many small members, where memory allows and the module has no control flow that depends
            on data.
        weights_only: Load only tensors and plain values from checkpoints. A file that you don't
            trust must not be loaded otherwise.

    Raises:
        ValueError: There are no members, they are of different architectures, or the module has
            nothing whose output could be averaged.

    Example:
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(2, 3)
        ...     def forward(self, x):
        ...         return self.net(x)
        >>> ensemble = EnsembleModule(Net(), [Net(), Net()])
        >>> ensemble(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        model: LightningModule,
        members: Sequence[Member],
        *,
        combine: CombineByName = "probabilities",
        class_dim: int = 1,
        output_of: str | None = None,
        vectorize: bool = False,
        weights_only: bool = True,
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("members=[] is no ensemble; give at least one")
        check_combine(combine)
        self.model = model
        self._combine = combine
        self._class_dim = class_dim
        self._output_of = output_of
        self._vectorize = vectorize
        self._parts = callable_parts(model, output_of)
        weights = [weights_of(member, weights_only=weights_only) for member in members]
        self._take(stacked_weights(weights))

    @property
    def num_members(self) -> int:
        """How many members there are."""
        return len(self._weights[0])

    def member(self, index: int) -> dict[str, Tensor]:
        """Return the weights of one member, for ``module.load_state_dict``."""
        pairs = zip(self._names, self._weights, strict=True)
        return {name: stack[index].detach().clone() for name, stack in pairs}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the averaged output of ``model(...)``."""
        with self._averaged():
            return self.model(*args, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all members and settings to one file of tensors and plain values.

        Args:
            path: The file.
        """
        combine = self._combine
        settings = {
            "combine": combine if isinstance(combine, str) else dict(combine),
            "class_dim": self._class_dim,
            "output_of": self._output_of,
            "vectorize": self._vectorize,
        }
        weights = [weight.detach().cpu() for weight in self._weights]
        stacked = dict(zip(self._names, weights, strict=True))
        torch.save({"ensemble": stacked, "settings": settings}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: LightningModule) -> EnsembleModule:
        """Read what :meth:`save` has written; nothing but tensors and plain values is loaded.

        Args:
            path: The file.
            model: The module.

        Raises:
            ValueError: The file holds something else.
        """
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or "ensemble" not in saved:
            raise ValueError(f"path={os.fspath(path)!r} is not a file of EnsembleModule.save")
        stacked: dict[str, Tensor] = saved["ensemble"]
        count = len(next(iter(stacked.values())))
        members = [{name: stack[i] for name, stack in stacked.items()} for i in range(count)]
        return cls(model, members, **saved["settings"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the hooks, which belong to this object."""
        return {k: v for k, v in self.__dict__.items() if k not in self._delegated}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the module's hooks again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._delegate()

    def _take(self, stacked: Mapping[str, Tensor]) -> None:
        known = set(self.model.state_dict())
        if set(stacked) != known:
            odd = min(set(stacked) ^ known)
            raise ValueError(
                f"members are not of the architecture of {type(self.model).__name__}: only one of"
                f" them has {odd}"
            )
        if self._output_of:
            self._share(
                {k: v for k, v in stacked.items() if not k.startswith(f"{self._output_of}.")}
            )
        self._names = list(stacked)
        self._weights = nn.ParameterList(
            nn.Parameter(tensor, requires_grad=False) for tensor in stacked.values()
        )
        self._delegate()

    def _share(self, others: Mapping[str, Tensor]) -> None:
        """Take the weights outside of the averaged part, which must be the same for all members."""
        for name, stack in others.items():
            if not torch.equal(stack, stack[:1].expand_as(stack)):
                raise ValueError(
                    f"members differ in {name}, which lies outside output_of={self._output_of!r};"
                    " only weights below that part can differ"
                )
        self.model.load_state_dict({name: stack[0] for name, stack in others.items()}, strict=False)

    def _delegate(self) -> None:
        hooks = delegated_hooks(self, self.model, self._averaged)
        self._delegated = list(hooks)
        self.__dict__.update(hooks)

    def _averaged(self) -> AveragedForward:
        return AveragedForward(
            self.model,
            dict(zip(self._names, self._weights, strict=True)),
            combine=self._combine,
            class_dim=self._class_dim,
            parts=self._parts,
            vectorize=self._vectorize,
        )


def weights_of(member: Member, *, weights_only: bool = True) -> dict[str, Tensor]:
    """Return the weights and buffers of a checkpoint, a state dict or a module, by name.

    Args:
        member: One of these. Of a checkpoint with an average, the averaged weights.
        weights_only: Load only tensors and plain values from a checkpoint.

    Example:
        >>> list(weights_of(nn.Linear(2, 3)))
        ['weight', 'bias']
    """
    if isinstance(member, nn.Module):
        return {name: tensor.detach() for name, tensor in member.state_dict().items()}
    if isinstance(member, Mapping):
        return dict(member)
    return saved_weights(member, weights_only=weights_only)
