"""What a user has set up around a call: default device and dtype, inference mode, autocast. Our arithmetic ignores it.

`exact` leaves it, and `as_user` goes back to it, for the user's own code: models, functions and loaders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

__all__ = ["as_user", "exact"]


@dataclass(frozen=True)
class _Surroundings:
    device: torch.device
    dtype: torch.dtype
    inference: bool
    autocast: dict[str, torch.dtype]

    @classmethod
    def now(cls) -> _Surroundings:
        device = torch.get_default_device()
        kinds = {"cpu", device.type, *(("cuda",) if torch.cuda.is_available() else ())}
        kinds = {kind for kind in kinds if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)}
        autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds}
        return cls(device, torch.get_default_dtype(), torch.is_inference_mode_enabled(), autocast)

    @contextmanager
    def entered(self) -> Iterator[None]:
        before = _Surroundings.now()
        with ExitStack() as stack:
            if self.device != before.device:
                stack.enter_context(torch.device(self.device))
            if self.dtype != before.dtype:
                torch.set_default_dtype(self.dtype)
                stack.callback(torch.set_default_dtype, before.dtype)
            if self.inference != before.inference:
                stack.enter_context(torch.inference_mode(self.inference))
            for kind in {*self.autocast, *before.autocast}:
                if (dtype := self.autocast.get(kind)) != before.autocast.get(kind):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=dtype is not None))
            yield


_PLAIN = _Surroundings(torch.device("cpu"), torch.float32, False, {})
_USER: ContextVar[_Surroundings | None] = ContextVar("surroundings", default=None)


@contextmanager
def exact() -> Iterator[None]:
    """New tensors are on the CPU and single, and nothing is computed in less than its own precision."""
    token = _USER.set(_USER.get() or _Surroundings.now())
    try:
        with _PLAIN.entered():
            yield
    finally:
        _USER.reset(token)


@contextmanager
def as_user() -> Iterator[None]:
    """Inside `exact`: everything is as it was outside; elsewhere it stays as it is."""
    user = _USER.get()
    if user is None:
        yield
        return
    with user.entered():
        yield
