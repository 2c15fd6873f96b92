"""Azurite, Microsoft's emulator of Azure Blob Storage, on loopback: `npm install azurite`."""

import base64
import hashlib
import hmac
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

import pyarrow.fs as fs

from tests import programs

ACCOUNT = "devstoreaccount1"
# Everybody's: it stands in the emulator's documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# A folder with the program in it.
VARIABLE = "AZURITE_BIN"
_CHECKOUT = Path(__file__).parents[1] / ".azurite" / "node_modules" / ".bin"
_VERSION = "2018-11-09"


class Server:
    """An emulator that runs.

    Args:
        authority: HOST:PORT where it listens.
    """

    def __init__(self, authority: str) -> None:
        self.authority = authority
        self.file_system = fs.AzureFileSystem(
            ACCOUNT,
            account_key=KEY,
            blob_storage_authority=authority,
            dfs_storage_authority=authority,
            blob_storage_scheme="http",
            dfs_storage_scheme="http",
        )
        self._containers: set[str] = set()

    @property
    def endpoint(self) -> str:
        """Its URL, as a connection string has it."""
        return f"http://{self.authority}/{ACCOUNT}"

    def connection_string(self, key: str = KEY) -> str:
        """What a client is told."""
        return f"AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={self.endpoint};"

    def make_container(self, name: str) -> None:
        """Makes a container, empty."""
        self.file_system.create_dir(name, recursive=False)
        self._containers.add(name)

    def put(self, path: str, content: bytes) -> None:
        """Makes an object of container and key."""
        with self.file_system.open_output_stream(path) as stream:
            stream.write(content)

    def put_odd(self, path: str, content: bytes = b"") -> None:
        """The same without pyarrow, which won't have some names."""
        container = path.partition("/")[0]
        url = f"{self.endpoint}/{quote(path)}?{self.token(container, 'w')}"
        request = Request(url, content, {"x-ms-blob-type": "BlockBlob"}, method="PUT")
        build_opener(ProxyHandler({})).open(request).close()

    def token(self, container: str, permissions: str) -> str:
        """A token that lets somebody into one container (a service SAS)."""
        end = "2100-01-01T00:00:00Z"
        signed = [permissions, "", end, f"/blob/{ACCOUNT}/{container}", "", "", "", _VERSION, "c", *[""] * 6]
        digest = hmac.digest(base64.b64decode(KEY), "\n".join(signed).encode(), hashlib.sha256)
        signature = base64.b64encode(digest).decode()
        return urlencode({"sv": _VERSION, "se": end, "sr": "c", "sp": permissions, "sig": signature})

    def clear(self) -> None:
        """Removes all that was made."""
        for name in self._containers:
            self.file_system.delete_dir(name)
        self._containers.clear()


def missing() -> str | None:
    """Why there can be no emulator here; None if there can."""
    if not hasattr(fs, "AzureFileSystem"):
        return "this pyarrow has no AzureFileSystem"
    return None if _program() else f"Azurite is not installed, nor named by {VARIABLE}"


def _program() -> str | None:
    folders = [os.environ.get(VARIABLE, ""), os.environ["PATH"], str(_CHECKOUT)]
    return shutil.which("azurite-blob", path=os.pathsep.join(filter(None, folders)))


@contextmanager
def running_server() -> Iterator[Server]:
    """An emulator for as long as it is needed. It ends with this process, however that ends."""
    with tempfile.TemporaryDirectory(prefix="azurite-") as folder:
        command = [_program(), "--blobHost", "127.0.0.1", "--blobPort", "0", "--disableTelemetry"]
        # Of a pyarrow that is newer than it, it would refuse the version of the API.
        command += ["--skipApiVersionCheck", "--location", folder]
        listens = r"successfully listens on http://(\S+)"
        with programs.running(command, ready=listens, signal="KILL", cwd=folder) as found:
            yield Server(found[1])
