"""The command that serves: serve."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap.balance import read_range
from batchcap.cli.clusters import AddressOption, check_address
from batchcap.cli.common import (
    BeamsOption,
    CatalogOption,
    DebugOption,
    ModelOption,
    Place,
    StoreOption,
    errors,
)
from batchcap.errors import NoCatalogError, UsageError

if TYPE_CHECKING:
    from batchcap.captioner.protocol import CaptionerSource
    from batchcap.catalog import Catalog
    from batchcap.serving.options import ServingOptions

_MEGA = 1_000_000


def serve(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 8012,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    model: ModelOption = None,
    num_beams: BeamsOption = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that every request must carry.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which browsers may call this server.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the model captions at once.")] = 64,
    decoders: Annotated[int, typer.Option(min=1, help="Processes that decode pictures.")] = 2,
    max_queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait; more get a 429.")] = 256,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections at once; more get a 503.")] = 512,
    max_files: Annotated[int, typer.Option(min=1, help="Pictures of one request.")] = 64,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of one request.")] = 64.0,
    max_megapixels: Annotated[
        float | None, typer.Option(min=0.001, help="Megapixels of one picture.", show_default="the model's")
    ] = None,
    decode_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to decode one picture.")] = 10.0,
    request_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 60.0,
    header_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for the head of a request to arrive.")
    ] = 10.0,
    body_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for its body to arrive.")] = 60.0,
    send_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a client may leave unread what it is sent.")
    ] = 30.0,
    keep_alive_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a connection may stay without a next request.")
    ] = 5.0,
    stop_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to answer what is in flight when told to stop.")
    ] = 60.0,
    ray: Annotated[bool, typer.Option("--ray", help="Serve by processes of Ray Serve.")] = False,
    address: AddressOption = None,
    replicas: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="With --ray: processes with a model each.")
    ] = "1",
    log_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a JSON object an answer to FILE.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Caption over HTTP, and search and browse a collection on a web page."""
    with errors(False, debug):
        try:
            from batchcap.serving.access_log import AccessLog
            from batchcap.serving.app import create_app
            from batchcap.serving.model_loading import load_captioner
            from batchcap.serving.server import serve as run_server
        except ImportError as error:
            if error.name and error.name.startswith("batchcap"):
                raise
            raise UsageError(f"serve needs {error.name or 'more'}: pip install 'batchcap[serve]'") from None
        from batchcap.captioner.sources import open_source
        from batchcap.serving.options import ServingOptions, read_token

        options = ServingOptions(
            host=host,
            port=port,
            token=None if token_file is None else read_token(token_file),
            allowed_hosts=tuple(name.lower() for name in allowed_host or ()),
            max_body_bytes=round(max_body_mb * _MEGA),
            max_pixels=None if max_megapixels is None else round(max_megapixels * _MEGA),
            max_files=max_files,
            max_queue=max_queue,
            max_connections=max_connections,
            batch_size=batch_size,
            decoders=decoders,
            header_timeout_s=header_timeout,
            body_timeout_s=body_timeout,
            send_timeout_s=send_timeout,
            keep_alive_s=keep_alive_timeout,
            decode_timeout_s=decode_timeout,
            request_timeout_s=request_timeout,
            stop_timeout_s=stop_timeout,
        )
        source = open_source(model, num_beams=num_beams)
        catalog_url = Place.of(store, catalog).catalog_url
        if ray:
            _serve_on_ray(source, catalog_url, options, address, replicas, log_json)
            return
        if address is not None or replicas != "1":
            raise UsageError("--address and --replicas are for --ray")
        access_log = None if log_json is None else AccessLog(log_json)
        opened = _open_catalog(catalog_url)
        try:
            description = source.describe()
            print("batchcap: loading the model", file=sys.stderr)
            app = create_app(
                load_captioner(source, batch_size=batch_size),
                opened,
                name=source.name,
                num_beams=description.get("generation", {}).get("num_beams"),
                config=description,
                options=options,
                access_log=access_log,
            )
            run_server(app, options)
        finally:
            if access_log is not None:
                access_log.close()
            if opened is not None:
                opened.close()


def _serve_on_ray(
    source: "CaptionerSource",
    catalog_url: str,
    options: "ServingOptions",
    address: str | None,
    replicas: str,
    log_json: Path | None,
) -> None:
    if log_json is not None:
        raise UsageError("--log-json is not for --ray, which has many processes and logs of its own")
    check_address(address)
    fewest_and_most = read_range("--replicas", replicas)
    if (opened := _open_catalog(catalog_url)) is not None:
        # Each replica opens its own.
        opened.close()
    print("batchcap: starting Ray, loading the model", file=sys.stderr)
    try:
        from batchcap.serving.on_ray import serve_on_ray
    except ImportError as error:
        if error.name and error.name.startswith("batchcap"):
            raise
        needed = error.name or "more"
        raise UsageError(f"serve --ray needs {needed}: pip install 'batchcap[serve,cluster]'") from None
    serve_on_ray(
        source,
        catalog_url if opened is not None else None,
        options,
        address=address,
        replicas=fewest_and_most,
    )


def _open_catalog(url: str) -> "Catalog | None":
    from batchcap.catalog import Catalog
    from batchcap.console import print_error

    try:
        return Catalog.open(url)
    except NoCatalogError as error:
        print_error(f"captions only: {error}")
        return None
