"""Which account of Azure Blob Storage is meant and how one gets in, as Azure's own command line is told."""

import base64
import binascii
import os
import re
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

_SUFFIX = "core.windows.net"
_CONNECT_TIMEOUT_S = 5.0
_ACCOUNT = re.compile(r"[A-Za-z0-9-]+")
_AUTHORITY = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?")
_MAX_PORT = 65535


def options() -> dict[str, Any]:
    """What AzureFileSystem is to be given; without a key or a token it looks for credentials itself.

    Raises:
        OSError: the environment names no account, or makes no sense.
    """
    said = _connection_string()
    account = said.get("accountname") or os.environ.get("AZURE_STORAGE_ACCOUNT")
    scheme = said.get("defaultendpointsprotocol", "https").lower()
    domain = said.get("endpointsuffix", _SUFFIX).strip(".")
    blob, dfs = f".blob.{domain}", f".dfs.{domain}"
    if endpoint := said.get("blobendpoint"):
        account, scheme, blob, dfs = _at_endpoint(endpoint, account)
    if not account:
        raise OSError(
            "no account is named: set AZURE_STORAGE_ACCOUNT, and AZURE_STORAGE_KEY or "
            "AZURE_STORAGE_SAS_TOKEN, or AZURE_STORAGE_CONNECTION_STRING"
        )
    if not _ACCOUNT.fullmatch(account):
        raise OSError("AZURE_STORAGE_ACCOUNT, or the connection string, does not give the name of an account")
    # Of a host or a port that it does not understand, pyarrow ends the process.
    if scheme not in ("http", "https") or not _AUTHORITY.fullmatch(blob) or _port(blob) > _MAX_PORT:
        raise OSError(
            "AZURE_STORAGE_CONNECTION_STRING is to lead to http or https, to a host by its name or as IPv4"
        )
    found = {
        "account_name": account,
        "blob_storage_authority": blob,
        "dfs_storage_authority": dfs,
        "blob_storage_scheme": scheme,
        "dfs_storage_scheme": scheme,
    }
    key, token = said.get("accountkey"), said.get("sharedaccesssignature")
    if not (key or token):
        key, token = os.environ.get("AZURE_STORAGE_KEY"), os.environ.get("AZURE_STORAGE_SAS_TOKEN")
    if key:
        try:
            base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise OSError("AZURE_STORAGE_KEY, or AccountKey, is no key: it is not base64") from None
        return found | {"account_key": key}
    if token:
        # pyarrow puts it behind the URL of the account as it is.
        return found | {"sas_token": "?" + token.strip().lstrip("?")}
    if scheme == "http":
        raise OSError("over http it takes AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN")
    return found


def knock(options: dict[str, Any]) -> None:
    """Looks whether somebody listens there: pyarrow takes no time limits, and may wait for minutes.

    Args:
        options: what `options` gave.

    Raises:
        OSError: nobody does.
    """
    scheme, authority = options["blob_storage_scheme"], options["blob_storage_authority"]
    if authority.startswith("."):
        authority = options["account_name"] + authority
    host = authority.partition(":")[0]
    if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        # Then the way there is the proxy's.
        return
    port = _port(authority) or (443 if scheme == "https" else 80)
    try:
        socket.create_connection((host, port), _CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        raise OSError(f"Could not connect to {authority}: {error}") from error


def _port(authority: str) -> int:
    return int(authority.partition(":")[2] or 0)


def _connection_string() -> dict[str, str]:
    """The parts of the connection string by their names in lower case; they win over other variables."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    parts = (part.partition("=") for part in text.split(";") if part.strip())
    # Never with a part in a message: it may be a key.
    if (said := {name.strip().lower(): value.strip() for name, _, value in parts}) and not said.keys() & {
        "accountname",
        "blobendpoint",
    }:
        raise OSError("AZURE_STORAGE_CONNECTION_STRING has neither AccountName=… nor BlobEndpoint=…")
    return said


def _at_endpoint(endpoint: str, account: str | None) -> tuple[str | None, str, str, str]:
    """The account, the scheme and the authorities of the two services for pyarrow.

    One that begins with a dot it puts behind the account's name; else the account is the first part of the
    path, as in emulators, where the second service is not looked for elsewhere.
    """
    wrong = (
        "BlobEndpoint in AZURE_STORAGE_CONNECTION_STRING is to be https://ACCOUNT.blob.DOMAIN "
        "or http://HOST:PORT/ACCOUNT"
    )
    try:
        address = urlsplit(endpoint)
    except ValueError:
        raise OSError(wrong) from None
    authority = address.netloc
    if in_path := address.path.strip("/"):
        return in_path, address.scheme.lower(), authority, authority
    name, dot, domain = authority.partition(".")
    if not dot or not domain.startswith("blob.") or (account or name) != name:
        raise OSError(wrong)
    return name, address.scheme.lower(), f".{domain}", f".dfs.{domain.removeprefix('blob.')}"
