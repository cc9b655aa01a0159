"""SIGTERM, by which a cluster takes a machine back: the step is finished, a checkpoint saved, and the process ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 128 + signal.SIGTERM
"""What a process that was terminated exits with, as a shell reports it."""


class Interruption:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of SIGTERM while the block runs, in place of dying of it."""
        earlier = signal.signal(signal.SIGTERM, self._take_note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, earlier)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
