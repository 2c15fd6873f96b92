"""Reads what lies far away while something else is decoded."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from batchcap.storage import is_local, read_bytes

# Files that are read at the same time: a server takes longer to answer than the network to bring a picture.
_AT_A_TIME = 8
# What is larger is read when its turn comes, so that eight files of any size take no more memory than this.
_MAX_BYTES = 16 * 1024**2


class Reader:
    """Reads files of a batch in their order; those that are not local, some ahead of their turn."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[str] = deque()
        self._reading: deque[tuple[str, int, Future[bytes]]] = deque()

    def begin(self, locations: Sequence[str | bytes], limit: int) -> None:
        """Says what will be asked for.

        Args:
            locations: uris or paths, in the order in which `read_bytes` will be called.
            limit: as for `read_bytes`.
        """
        for _, _, future in self._reading:
            future.cancel()
        self._reading.clear()
        self._waiting = deque(each for each in locations if isinstance(each, str) and not is_local(each))
        self._read_ahead(limit)

    def read_bytes(self, location: str | bytes, limit: int) -> bytes:
        """As `storage.read_bytes`."""
        if not self._reading or self._reading[0][0] != location:
            return read_bytes(location, limit)
        _, most, future = self._reading.popleft()
        self._read_ahead(limit)
        data = future.result()
        return data if len(data) <= most or most == limit else read_bytes(location, limit)

    def _read_ahead(self, limit: int) -> None:
        if self._waiting and self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_A_TIME, "read-ahead")
        while self._pool and self._waiting and len(self._reading) < _AT_A_TIME:
            location, most = self._waiting.popleft(), min(limit, _MAX_BYTES)
            self._reading.append((location, most, self._pool.submit(read_bytes, location, most)))
