"""Processes that answer parts beside each other, each with the bundle open. They die with the process that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from esteira.batch.answering import Answering, Part
from esteira.batch.blocks import Block
from esteira.errors import EsteiraError, OutsideError

_PR_SET_PDEATHSIG = 1
_answering: Answering | None = None


class Failed(NamedTuple):
    """An error of ours on its way between processes: what it is, and its letter."""

    kind: type[EsteiraError]
    letter: dict[str, str]

    def error(self) -> EsteiraError:
        """It, as it was raised."""
        return self.kind(**self.letter)


class Workers:
    """A pool of processes.

    Args:
        count: of processes.
        bundle, bundle_id, device, keep: as for `Answering`.
    """

    def __init__(self, count: int, bundle: Path, bundle_id: str, device: str, keep: Sequence[str]) -> None:
        # Fresh processes: ONNX Runtime's threads do not survive a fork.
        self._pool = ProcessPoolExecutor(
            count, get_context("spawn"), initializer=_open, initargs=(os.getpid(), bundle, bundle_id, device, tuple(keep))
        )  # fmt: skip

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise OutsideError(
                "a worker lives until its parts are answered, but one died",
                code="worker_died", where="--workers", cure="is memory short? Run the same command again, with fewer workers",
            ) from error  # fmt: skip

    def submit(self, blocks: Sequence[tuple[str, Block]], first: int) -> "Future[Part | Failed]":
        """Have a part answered, see `Answering.part`; an error of ours comes back as its letter."""
        return self._pool.submit(_answer, blocks, first)


def _open(parent: int, bundle: Path, bundle_id: str, device: str, keep: tuple[str, ...]) -> None:
    global _answering
    # Ctrl-C reaches the whole group; who started us ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _answering = Answering(bundle, bundle_id=bundle_id, device=device, keep=keep)


def _answer(blocks: Sequence[tuple[str, Block]], first: int) -> Part | Failed:
    assert _answering is not None
    try:
        return _answering.part(blocks, first)
    except EsteiraError as error:  # which pickle cannot carry
        return Failed(type(error), error.to_dict())
