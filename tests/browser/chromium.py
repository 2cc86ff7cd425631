"""A headless Chromium at the end of a pipe. It speaks the DevTools protocol there: JSON messages, each ended by a zero
byte. So driving it needs no package, no port and no driver program of the same version."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60.0
OPTIONS = (
    "--headless",
    "--no-sandbox",  # it shows our own file only, and root has no sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have a small /dev/shm
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """The browser's path, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One tab. `complaints` are console errors, uncaught exceptions and what the page's own policy refused."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.complaints: list[str] = []
        self._read_fd, self._write_fd = read_fd, write_fd
        self._last = 0
        self._pending = b""
        self._events: list[dict[str, Any]] = []
        self._session = ""

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Show a file, and wait until it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._wait("Page.loadEventFired")

    def resize(self, width: int, height: int = 900) -> None:
        """Another size of window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def eventually(self, script: str) -> Any:
        """The expression's value as soon as it is true, or the last one after a few seconds."""
        end = time.monotonic() + 10
        value = self.evaluate(script)
        while not value and time.monotonic() < end:
            time.sleep(0.05)
            value = self.evaluate(script)
        return value

    def hover(self, x: float, y: float) -> None:
        """Move the pointer there, in two steps as a hand would."""
        for near in (3, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + near, y=y + near)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile is kept."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _wait(self, event: str) -> None:
        while not any(one.get("method") == event for one in self._events):
            self._receive()

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._read_fd, 1 << 16) if ready else b""
            if not piece:
                raise AssertionError("Chromium has ended, or says nothing any more")
            self._pending += piece
        text, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message.get("params", {}))
        return message

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert", "warning"):
            self.complaints.append(json.dumps(said["args"]))
        if method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Page]:
    """A browser with an empty profile; it ends with the block."""
    for_browser, to_browser = os.pipe()
    from_browser, for_us = os.pipe()
    command = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    # the browser reads commands from descriptor 3 and answers on 4; dash cannot redirect numbers above 9, bash can
    script = f'exec "$0" "$@" 3<&{for_browser} 4>&{for_us}'
    process = subprocess.Popen(
        ["bash", "-c", script, *command],
        pass_fds=(for_browser, for_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(for_browser)
    os.close(for_us)
    try:
        yield Page(from_browser, to_browser)
    finally:
        os.close(to_browser)  # it ends when nobody can tell it anything any more
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        os.close(from_browser)
