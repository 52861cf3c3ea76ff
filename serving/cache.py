"""Keeps encoded answers of rows, to give them again for the same row of the same bundle. Bounded in bytes; knows no HTTP.

Ask it only of models that are deterministic: it cannot tell. What is of one request (its id, its time) is not in an answer.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from esteira.family import Row

ENTRY_BYTES = 300
"""What an entry takes besides its answer: key, objects and its place in the table."""

_canonical = msgspec.json.Encoder(order="deterministic").encode


class AnswerCache:
    """Answers by key; the least recently used go first. Safe to use from several threads.

    Args:
        capacity: bytes that it may hold; 0 keeps nothing.

    Attributes:
        hits: rows that were answered from it.
        misses: rows that were not, be it for another row of their request.
        bytes: what it holds, at most `capacity`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = self.misses = self.bytes = 0
        self._kept: OrderedDict[bytes, tuple[msgspec.Raw, int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def entries(self) -> int:
        """How many answers it holds."""
        return len(self._kept)

    def keys(self, bundle_id: str, rows: Sequence[Row]) -> list[bytes]:
        """One key a row of strict JSON: equal for equal cells of equal types in whatever order, and for nothing else.

        1, 1.0, true and "1" are four cells, and a cell that is absent is not one that is null. The key of a row that cannot
        be written is empty, and such a row is never kept.
        """
        if self.capacity <= 0:
            return [b""] * len(rows)
        start = sha256(bundle_id.encode())
        keys = []
        for row in rows:
            try:
                text = _canonical(row)
            except (TypeError, ValueError, OverflowError, RecursionError):
                keys.append(b"")
                continue
            key = start.copy()
            key.update(text)
            keys.append(key.digest())
        return keys

    def get(self, key: bytes) -> msgspec.Raw | None:
        """The encoded answer of the row with this key, or None."""
        if not key:
            return None
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return kept[0]

    def get_all(self, keys: Sequence[bytes]) -> list[msgspec.Raw] | None:
        """The encoded answers of all these rows; None where one is missing: then all are computed, and count as misses."""
        found = []
        with self._lock:
            for key in keys:
                kept = self._kept.get(key)
                if kept is None:
                    self.misses += len(keys)
                    return None
                found.append(kept[0])
            self.hits += len(keys)
            for key in keys:
                self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, answer: msgspec.Raw) -> None:
        """Keep a row's encoded answer; a copy, so that nobody can change what another is given."""
        if not key:
            return
        content = bytes(answer)
        size = len(content) + ENTRY_BYTES
        if size > self.capacity:
            return
        kept = (msgspec.Raw(content), size)
        with self._lock:
            old = self._kept.pop(key, None)
            if old is not None:
                self.bytes -= old[1]
            self._kept[key] = kept
            self.bytes += size
            while self.bytes > self.capacity:
                _, (_, freed) = self._kept.popitem(last=False)
                self.bytes -= freed
