"""The command that serves: serve."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    from batchcap.captioner.protocol import CaptionerProtocol, CaptionerSource
    from batchcap.catalog import Catalog

_MEGA = 1_000_000
# A picture that comes alone pays for as many; a CPU is hardly faster with more.
_CNN_BATCH_SIZE_OF_CPU = 4


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
    stop_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to answer what is in flight when told to stop.")
    ] = 60.0,
    debug: DebugOption = False,
) -> None:
    """Caption over HTTP, and search and browse a collection on a web page."""
    with errors(False, debug):
        try:
            from batchcap.serving.app import create_app
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
            batch_size=batch_size,
            decoders=decoders,
            header_timeout_s=header_timeout,
            body_timeout_s=body_timeout,
            decode_timeout_s=decode_timeout,
            request_timeout_s=request_timeout,
            stop_timeout_s=stop_timeout,
        )
        source = open_source(model, num_beams=num_beams)
        opened = _open_catalog(Place.of(store, catalog).catalog_url)
        try:
            description = source.describe()
            app = create_app(
                _load(source, batch_size),
                opened,
                name=source.name,
                num_beams=description.get("generation", {}).get("num_beams"),
                config=description,
                options=options,
            )
            run_server(app, options)
        finally:
            if opened is not None:
                opened.close()


def _open_catalog(url: str) -> "Catalog | None":
    from batchcap.catalog import Catalog
    from batchcap.console import print_error

    try:
        return Catalog.open(url)
    except NoCatalogError as error:
        print_error(f"captions only: {error}")
        return None


def _load(source: "CaptionerSource", batch_size: int) -> "CaptionerProtocol":
    from batchcap.captioner.bundle import Bundle
    from batchcap.captioner.quiet import quiet_stderr

    print("batchcap: loading the model", file=sys.stderr)
    with quiet_stderr():
        if not isinstance(source, Bundle):
            return source.load_captioner(batch_size=batch_size, num_threads=os.cpu_count() or 1)
        from batchcap.captioner.captioner import CNN_BATCH_SIZE, Captioner
        from batchcap.captioner.runtime import has_gpu

        chunk = CNN_BATCH_SIZE if has_gpu() else _CNN_BATCH_SIZE_OF_CPU
        captioner = Captioner(source, batch_size=batch_size, cnn_batch_size=chunk)
        captioner.warm_up()
        return captioner
