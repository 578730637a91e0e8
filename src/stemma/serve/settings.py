"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """`keys`: one of them must come with every request, where there are any. `hosts`: names by which the server may be
    called, beside addresses and localhost. `origins`: pages of other sites that may call it. `admin`: models may be
    loaded and dropped by request. `feedback`: a file that keeps what people think of answers. `rows`, `queue` and
    `kv`: of each model's engine. `max_body`: bytes of a request; `max_tokens`: new tokens where a request names no
    number; `keep_alive`: seconds without an event after which a stream says that it is there; `drain`: seconds that
    open requests have when the server is told to end; `store`: bytes of responses that are kept, 0: none is."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    admin: bool = False
    rows: int = 32
    queue: int = 256
    max_body: int = 8 * 2**20
    max_tokens: int = 1024
    keep_alive: float = 15.0
    drain: float = 30.0
    feedback: str = ""
    store: int = 64 * 2**20
    kv: str | None = None

    def __post_init__(self) -> None:
        if self.admin and not self.keys:
            raise UsageError("routes that load and drop models need a key: give --api-key with --admin")
        if any(not key.strip() or not key.isascii() for key in self.keys):
            raise UsageError("an API key has at least one character, and all of them are ASCII")
        for name in ("rows", "queue", "max_body", "max_tokens", "keep_alive", "drain"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name.replace('_', '-')} must be more than 0, not {getattr(self, name)}")
