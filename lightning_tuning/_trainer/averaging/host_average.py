"""An average that lies in host memory while the weights lie on an accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lightning_tuning.functional.ema_update import group_tensors, update_average


class HostAverage:
    """Updates averages on the host from weights on a device, while training goes on.

    A copy of the weights runs on a stream of its own, beside the next forward and backward pass;
    the optimizer's next step waits for it on the device. The average is moved by a thread. The
    program itself waits only where it is more than one update ahead.

    Args:
        average: Averages in host memory.
        weights: The weights, on one device or several.
    """

    def __init__(self, average: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)
        self._streams = {w.device: _stream(w.device) for w in self._weights if w.is_cuda}
        self._staged = [
            torch.empty_like(w, device="cpu", pin_memory=w.is_cuda, requires_grad=False)
            for w in self._weights
        ]
        self._average = list(average)
        self._groups = group_tensors(self._average, self._staged)
        self._copied: dict[torch.device, torch.cuda.Event] = {}
        self._worker = ThreadPoolExecutor(1, "ema")
        self._pending: Future[None] | None = None

    def start(self) -> None:
        """Begin the average with the weights as they are now."""
        self._copy()
        self._pending = self._worker.submit(self._take)

    def update(self, decay: float | Tensor) -> None:
        """Begin an update with the weights as they are now."""
        self.wait()
        self._copy()
        self._pending = self._worker.submit(self._move, decay)

    def before_step(self) -> None:
        """Let the device wait, before it changes the weights, until they are copied."""
        for device, copied in self._copied.items():
            torch.cuda.current_stream(device).wait_event(copied)

    def wait(self) -> None:
        """Wait until the average is up to date."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish, and end the thread."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    @torch.no_grad()
    def _copy(self) -> None:
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))
        for staged, weight in zip(self._staged, self._weights, strict=True):
            if weight.is_cuda:
                stream = self._streams[weight.device]
                with torch.cuda.stream(stream):
                    staged.copy_(weight, non_blocking=True)
                # the program may point a parameter elsewhere and free this memory
                weight.record_stream(stream)
            else:
                staged.copy_(weight)
        self._copied = {device: stream.record_event() for device, stream in self._streams.items()}

    def _move(self, decay: float | Tensor) -> None:
        self._wait_for_copy()
        update_average(self._groups, decay)

    def _take(self) -> None:
        self._wait_for_copy()
        torch._foreach_copy_(self._average, self._staged)

    def _wait_for_copy(self) -> None:
        for copied in self._copied.values():
            copied.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
