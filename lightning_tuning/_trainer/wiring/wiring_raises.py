"""Whether the training step runs at all."""

from __future__ import annotations

import traceback
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring import wiring_raises as rules
from lightning_tuning.functional.wiring.wiring_raises import Raised

_BATCHES = 4
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lightning_tuning/", "<frozen")
_SURROUNDINGS = ("trainer", "logger", "callback", "experiment")


def measure(probe: Probe) -> Raised:
    """Run the step on the first batches."""
    batches = probe.batches(_BATCHES)
    for batch in batches:
        calls = _Calls()
        try:
            probe.step(batch, backward=True, watch=[calls])
        except StepError as raised:
            line, code = _own_line(raised.error)
            return Raised(
                kind=type(raised.error).__name__,
                text=str(raised.error),
                line=line,
                layer=_path(probe.module, calls.stack),
                surroundings=any(word in code for word in _SURROUNDINGS),
                batches=len(batches),
            )
    return Raised(batches=len(batches))


class _Calls:
    """Knows which layers are being called; after an error, which were."""

    def __init__(self) -> None:
        self.stack: list[nn.Module] = []

    def __enter__(self) -> None:
        self._handles = [
            register_module_forward_pre_hook(lambda module, _args: self._begin(module)),
            register_module_forward_hook(lambda _module, _args, _result: self._end()),
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module) -> None:
        self.stack.append(module)

    def _end(self) -> Any:
        if self.stack:
            self.stack.pop()


def _own_line(error: BaseException) -> tuple[str, str]:
    """Return the innermost line of an error that no library wrote: its place, and its code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in _LIBRARIES):
            code = frame.line or ""
            name = frame.filename.rpartition("/")[2]
            return f"{name}:{frame.lineno}: {code}", code
    return "", ""


def _path(module: nn.Module, stack: list[nn.Module]) -> str:
    paths = {id(part): path for path, part in module.named_modules()}
    return next((paths[id(part)] for part in reversed(stack) if paths.get(id(part))), "")


TOPIC = Topic(measure=measure, rules={"step_raised": rules.step_raised})
