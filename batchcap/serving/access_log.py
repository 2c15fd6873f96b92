"""What was asked and answered, one JSON object a line: `serve --log-json FILE`."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from batchcap.errors import UsageError

logger = logging.getLogger("batchcap.serving")


class AccessLog:
    """Appends to a file, a line an answer.

    Paths are there, but not what stands behind them: what people search for is their own affair. A disk that
    is full costs lines, not answers.

    Args:
        path: of the file; what is in it stays.

    Raises:
        UsageError: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_failing = False
        try:
            # Not buffered: who follows the file sees whole lines, and a kill loses none.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"can't write the log {path}: {error.strerror}") from error

    def write(self, **values: str | int | float | None) -> None:
        """Appends a line.

        Args:
            **values: of it, besides the time.
        """
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values})
        try:
            self._file.write(f"{line}\n".encode())
        except OSError as error:
            if not self._is_failing:
                logger.error("can't write the log %s: %s", self._path, error)
            self._is_failing = True
        else:
            self._is_failing = False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
