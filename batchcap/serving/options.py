"""What a server is told: where it listens, who may ask, and how much of everything it takes."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from batchcap.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8012
# Shorter ones can be guessed by trying.
_MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """Options of a server; every one has a default that is safe on a machine of one's own.

    Args:
        host: the address to listen at.
        port: 0 for any that is free.
        token: what requests must carry; None lets anybody in, and beyond loopback shows no collection.
        allowed_hosts: names, besides those of loopback, by which browsers may call this server.
        max_body_bytes: of one request; what is longer is cut off while it arrives.
        max_pixels: of one picture; None is the model's own limit.
        max_files: of one request.
        max_queue: pictures that may wait at once; who comes then is asked to come back.
        max_connections: at once; who comes then is asked to come back. With the files of uploads they stay
            below the 1,024 descriptors that a process may have on most systems.
        batch_size: pictures that the model captions at once.
        decoders: processes that decode pictures.
        header_timeout_s: how long the head of a request may take to arrive.
        body_timeout_s: how long its body may take.
        send_timeout_s: how long a client may leave unread what it is sent.
        keep_alive_s: how long a connection may stay without a next request.
        decode_timeout_s: how long one picture may take to decode; it is tried twice.
        request_timeout_s: how long an answer may take, from the end of the body on.
        stop_timeout_s: how long requests in flight may go on when the server is told to stop.
        thumbnail_cache_bytes: of memory.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20
    max_pixels: int | None = None
    max_files: int = 64
    max_queue: int = 256
    max_connections: int = 512
    batch_size: int = 64
    decoders: int = 2
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    keep_alive_s: float = 5.0
    decode_timeout_s: float = 10.0
    request_timeout_s: float = 60.0
    stop_timeout_s: float = 60.0
    thumbnail_cache_bytes: int = 64 * 2**20

    @property
    def is_private(self) -> bool:
        """Whether only programs on this machine can reach the server, by names of this machine."""
        return is_loopback(self.host) and all(map(is_loopback, self.allowed_hosts))

    @property
    def shows_collection(self) -> bool:
        """Whether the server answers what the collection holds, and not only what it is sent."""
        return self.is_private or self.token is not None


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, whatever a name server says."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """Reads a token from its file: the first line, without white space around it.

    Raises:
        UsageError: it can't be read, or is so short that it can be guessed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"can't read the token in {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no text in UTF-8") from error
    token = lines[0].strip() if lines else ""
    if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or " " in token:
        raise UsageError(
            f"the token in {path} must be one word of at least {_MIN_TOKEN_LENGTH} ASCII characters; "
            "make one with: openssl rand -hex 32"
        )
    return token
