"""A real browser, driven over a pipe: Chromium's own protocol (CDP), without a library."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# It reads from 3 and writes to 4, which may be taken: first away from there.
_START = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 10) for descriptor in sys.argv[1:3]]
os.dup2(ours[0], 3)
os.dup2(ours[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_TIMEOUT_S = 120
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Where it is; None if it isn't here."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Chromium:
    """One tab of a browser without a window, with a profile of its own.

    Args:
        profile: a folder that it may fill.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self._program = program
        self._profile = profile
        self._buffer = b""
        self._last_id = 0
        # The addresses that it has asked for anything.
        self.requested: list[str] = []
        self._session: str | None = None

    def __enter__(self) -> Self:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()

        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _START, str(theirs_in), str(theirs_out), self._program),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars"),
                f"--user-data-dir={self._profile}",
                "about:blank",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        (page,) = [
            target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> Any:
        """Calls a method of the protocol, and waits for its answer."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> Any:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], _TIMEOUT_S)
            read = os.read(self._from, 2**20) if ready else b""
            if not read:
                raise RuntimeError("Chromium has ended, or hangs")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer = json.loads(message)
        if answer.get("method") == "Network.requestWillBeSent":
            self.requested.append(answer["params"]["request"]["url"])
        return answer

    def open(self, url: str, *, width: int = 1400, height: int = 900) -> None:
        """Opens a page in a window of a size, and waits until all of it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        with self.loading():
            self.call("Page.navigate", url=url)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Waits for the page to which something leads: until it is there whole, and the one before is not."""
        self.evaluate("window.isLeft = true")
        yield
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            # Between two pages there is none to ask.
            with suppress(RuntimeError):
                if self.evaluate("!window.isLeft && document.readyState === 'complete'"):
                    return
        raise RuntimeError("no other page was loaded")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        """Puts files into a field, as a person who picks them."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        files = [str(path) for path in paths]
        self.call("DOM.setFileInputFiles", files=files, objectId=node["result"]["objectId"])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses a key and lets it go.

        Args:
            key: its name.
            code: its number in Windows, by which Chromium knows what it does.
            text: what it writes.
        """
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            written = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **written
            )

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
