"""A headless Chromium under a test's control: the DevTools protocol over two pipes, which needs no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-extensions", "--no-first-run", "--hide-scrollbars", "--mute-audio", "--remote-debugging-pipe",
)  # fmt: skip
Call = dict[str, Any]


def found() -> str | None:
    """The path of a browser, where there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser process."""

    def __init__(self, command: str, profile: Path) -> None:
        hear, write = os.pipe()  # what the browser reads
        read, speak = os.pipe()  # what it writes

        def place() -> None:  # the protocol stands on 3 and 4
            low, high = os.dup(hear), os.dup(speak)
            while min(low, high) < 5:
                low, high = (fd if fd >= 5 else os.dup(fd) for fd in (low, high))
            os.dup2(low, 3)
            os.dup2(high, 4)

        self.process = subprocess.Popen(
            [command, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=place, start_new_session=True,
        )  # fmt: skip
        os.close(hear)
        os.close(speak)
        self.read, self.write, self.rest, self.last = read, write, b"", 0
        self.heard: list[Call] = []

    def close(self) -> None:
        os.close(self.write)
        os.close(self.read)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)

    def receive(self, until: float) -> Call | None:
        """The next message; None when there is none in time."""
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(self.read, 1 << 20)
            if not data:
                raise EOFError("the browser ended")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(line))

    def ask(self, method: str, session: str | None = None, seconds: float = 30, **params: Any) -> Any:
        """The result of a call. Raises RuntimeError for an error or where none comes in time."""
        self.last += 1
        number = self.last
        call: Call = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.write, json.dumps(call).encode() + b"\0")
        until = time.monotonic() + seconds
        while (message := self.receive(until)) is not None:
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            if "method" in message:
                self.heard.append(message)
        raise RuntimeError(f"{method}: no answer within {seconds} s")

    def tab(
        self,
        address: str,
        size: tuple[int, int] = (1280, 800),
        phone: bool = False,
        dark: bool = False,
        ready: bool = True,
        beside: Tab | None = None,
    ) -> Tab:
        """A page in a store of its own, as if of a new user; or one more page of the user of another."""
        context = beside.context if beside else self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, context)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.ask(f"{domain}.enable")
        tab.ask("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=phone)
        if phone:
            tab.ask("Emulation.setTouchEmulationEnabled", enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.ask("Emulation.setEmulatedMedia", features=[scheme])
        if ready:
            tab.go(address)
        return tab


KEYS = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}


class Tab:
    """One page."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self.browser, self.session, self.context = browser, session, context

    def ask(self, method: str, **params: Any) -> Any:
        return self.browser.ask(method, self.session, **params)

    def go(self, address: str) -> None:
        self.ask("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def close(self) -> None:
        self.browser.ask("Target.disposeBrowserContext", browserContextId=self.context)

    def eval(self, code: str) -> Any:
        """The value of an expression, awaited. Raises AssertionError with the page's own error."""
        done = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in done:
            raise AssertionError(
                done["exceptionDetails"].get("exception", {}).get("description", done["exceptionDetails"]["text"])
            )
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> Any:
        """The value of an expression once it is true. Raises AssertionError when it stays false."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if value := self.eval(f"(found => found instanceof Node || found)({condition})"):
                return value
            time.sleep(0.03)
        raise AssertionError(f"never true: {condition}; the page shows: {self.eval('document.body.innerText')[:1500]}")

    def press(self, key: str, *held: str) -> None:
        """A key, with Shift, Control or Alt held."""
        modifiers = sum({"Alt": 1, "Control": 2, "Shift": 8}[name] for name in held)
        code = KEYS.get(key) or ord(key.upper())
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        named = {
            "key": key,
            "code": key if len(key) > 1 else f"Key{key.upper()}",
            "windowsVirtualKeyCode": code,
            "modifiers": modifiers,
        }
        text = "" if "Control" in held or "Alt" in held else text
        self.ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element."""
        quoted = json.dumps(selector)
        self.wait(f"document.querySelector({quoted})")
        x, y = self.eval(
            f"(() => {{ const e = document.querySelector({quoted}); e.scrollIntoView({{block: 'nearest'}});"
            " const r = e.getClientRects()[0]; return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, button="left", clickCount=1)
        self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def trouble(self) -> list[str]:
        """Errors and warnings of the page, addresses of elsewhere that it asked for: nothing, of a good page."""
        self.eval("1")
        told = []
        own: Callable[[str], bool] = lambda url: url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))  # noqa: E731
        for message in self.browser.heard:
            if message.get("sessionId") != self.session:
                continue
            params = message["params"]
            match message["method"]:
                case "Runtime.exceptionThrown":
                    told.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    told.append(params["entry"]["text"])
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                    told.append(str(params["args"]))
                case "Network.requestWillBeSent" if not own(params["request"]["url"]):
                    told.append(f"asks {params['request']['url']}")
        return told
