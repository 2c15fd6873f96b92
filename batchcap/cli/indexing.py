"""Commands that caption: index, caption."""

import os
import sys
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchcap.cli.clusters import (
    AddressOption,
    GpusPerWorkerOption,
    MemoryOption,
    WaitOption,
    WorkersOption,
    compute_options,
    refuse_catalog_that_goes,
)
from batchcap.cli.common import (
    QUARANTINED,
    BeamsOption,
    CatalogOption,
    DebugOption,
    JsonOption,
    ModelOption,
    Place,
    StoreOption,
    errors,
    print_json,
)
from batchcap.errors import Reason, UsageError

if TYPE_CHECKING:
    import numpy as np

    from batchcap.captioner.protocol import Caption, CaptionerSource
    from batchcap.preview import Preview


class VectorsChoice(StrEnum):
    """Of which images vectors are stored; see `IndexOptions`."""

    NEW = "new"
    ALL = "all"
    NONE = "none"


def index(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, globs; .tar archives; s3://, gs:// and az:// prefixes; http:// files."
        ),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", help="A file that names what to caption: .parquet, .csv, or a path a line."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Where the paths are in a --list.", show_default="uri, path or url, or the only one"
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="SQL whose first column names what to caption; of --database.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="Where --query is asked, such as sqlite:///a.db.")
    ] = None,
    store: StoreOption = None,
    catalog: CatalogOption = None,
    model: ModelOption = None,
    num_beams: BeamsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the model captions at once.")] = 128,
    decode_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one file may take.")] = 60.0,
    retry: Annotated[
        list[Reason] | None, typer.Option(help="Try the quarantined files with this reason again.")
    ] = None,
    recaption: Annotated[bool, typer.Option(help="Also caption what another model captioned.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="Only files that match; '*.jpg' by name, '2024/**' by path.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Neither files nor folders that match; as --include.")
    ] = None,
    allow_vanish: Annotated[bool, typer.Option(help="Let more than half of the files be gone.")] = False,
    no_gps: Annotated[bool, typer.Option("--no-gps", help="Leave out where pictures were taken.")] = False,
    vectors: Annotated[
        VectorsChoice,
        typer.Option(
            help="Vectors for search --like: of new captions, also of this model's that have none, or none."
        ),
    ] = VectorsChoice.NEW,
    log_json: Annotated[
        Path | None, typer.Option(help="Append to this file how the run goes, a JSON object a line.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics there, on loopback.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page on the run to this HTML file.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs to use at most.", show_default="all")] = None,
    gpus_per_worker: GpusPerWorkerOption = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    address: AddressOption = None,
    wait_for_nodes: WaitOption = 10.0,
    dry_run: Annotated[bool, typer.Option(help="Only say what there is to do.")] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --dry-run: show how the model would caption N of these files; with --recaption N that "
            "another model captioned, beside its captions.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --sample: write it to this HTML file, with the pictures.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Caption what is new or changed in a collection; run it again any time."""
    with errors(as_json, debug, writes=not dry_run):
        from batchcap.balance import keep_to_cpus
        from batchcap.captioner.sources import open_source
        from batchcap.catalog import Catalog
        from batchcap.collection import ListFile, Query, resolve_sources
        from batchcap.console import ProgressBar, ProgressLines, print_error, summary
        from batchcap.observers import JsonLog, Metrics, Observers, Timeline
        from batchcap.pipeline import index_collection
        from batchcap.preview import preview_index
        from batchcap.report import write_report
        from batchcap.run_options import IndexOptions
        from batchcap.run_report import Progress

        if cpus is not None and address is not None:
            raise UsageError("--cpus is for one machine; on a cluster, --workers says how much is used")
        if cpus is not None:
            keep_to_cpus(cpus)
        compute = compute_options(address, gpus_per_worker, workers, memory, wait_for_nodes)
        place = Place.of(store, catalog)
        refuse_catalog_that_goes(place.catalog_url, address)
        if column is not None and not lists:
            raise UsageError("--column is of a --list, and there is none")
        if (query is None) != (database is None):
            raise UsageError("--query and --database belong together")
        if sample is not None and not dry_run:
            raise UsageError("--sample goes with --dry-run")
        if output is not None and sample is None:
            raise UsageError("--output goes with --sample")
        sources: list[str | ListFile | Query] = list(source or ())
        sources += [ListFile(path, column) for path in lists or ()]
        if query is not None and database is not None:
            sources.append(Query(query, database))
        resolve_sources(sources)  # a wrong SOURCE is told before a store is made for it
        captioner = open_source(model, num_beams=num_beams)
        options = IndexOptions(
            batch_size=batch_size,
            decode_timeout_s=decode_timeout,
            retry=tuple(retry or ()),
            recaption=recaption,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            allow_vanish=allow_vanish,
            gps=not no_gps,
            vectors=vectors.value,
            cpus=cpus,
            compute=compute,
        )
        if dry_run:
            with ProgressBar() if sample else Progress() as progress:
                preview = preview_index(
                    sources,
                    place.catalog_url,
                    captioner,
                    options,
                    sample_size=sample or 0,
                    progress=progress,
                )
            _show_preview(preview, output, as_json)
            return
        timeline = Timeline()
        # Of a job on a cluster people see the log.
        watchers: list[Progress] = [ProgressBar() if address is None else ProgressLines(), timeline]
        if log_json is not None:
            watchers.append(JsonLog(log_json))
        if metrics_port is not None:
            watchers.append(Metrics(metrics_port))
        with Catalog.open(place.catalog_url, mode="write") as opened:
            with Observers(watchers) as progress:
                done = index_collection(
                    sources, opened, place.store, captioner, options=options, progress=progress
                )
            if report is not None:
                write_report(report, done, opened, [str(each) for each in sources], timeline.points)
        if as_json:
            print_json(done.describe())
        else:
            print(summary(done))
        if done.quarantined:
            if not as_json:
                count = sum(done.quarantined.values())
                print_error(f"{count:,} {'file' if count == 1 else 'files'} could not be captioned")
            raise typer.Exit(QUARANTINED)


def _show_preview(preview: "Preview", output: Path | None, as_json: bool) -> None:
    from batchcap.console import preview_summary, print_sample, sample_summary

    sample = preview.sample
    if output is not None and sample is not None:
        from batchcap.sampling import write_sample

        write_sample(output, sample)
    if as_json:
        values = {field.name: getattr(preview, field.name) for field in fields(preview)}
        if sample is None:
            del values["sample"]
        else:
            values["sample"] = asdict(sample)
        print_json(values)
        return
    if sample is None:
        print(preview_summary(preview))
        return
    # On stdout there is nothing but the sample.
    print(preview_summary(preview), file=sys.stderr)
    if output is None:
        print_sample(sample)
    else:
        print(output)
    print(sample_summary(sample), file=sys.stderr)


def caption(
    image: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: ModelOption = None,
    num_beams: BeamsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Caption a few images at once, without a store."""
    with errors(as_json, debug, writes=False):
        from batchcap.captioner.sources import open_source
        from batchcap.console import on_one_line, print_error
        from batchcap.loading import ImageLoader

        for path in image:
            if not path.is_file():
                raise UsageError(f"{path} is no file")
        captioner = open_source(model, num_beams=num_beams)
        with ImageLoader(captioner.image_spec) as loader:
            loaded = loader.load([str(path) for path in image])
        captions = iter(_caption_all(captioner, [file.image.pixels for file in loaded if file.image]))
        found = [
            (path, file, next(captions) if file.image else None)
            for path, file in zip(image, loaded, strict=True)
        ]
        if as_json:
            print_json(
                {
                    "captions": [
                        {"image": str(path), **_caption_fields(text)}
                        if text
                        else {"image": str(path), "reason": file.reason, "detail": file.detail}
                        for path, file, text in found
                    ]
                }
            )
        else:
            for path, file, text in found:
                if text:
                    print(f"{on_one_line(path)}\t{on_one_line(text.text)}")
                else:
                    print_error(f"{path}: {file.reason}: {file.detail}")
        if any(text is None for _, _, text in found):
            raise typer.Exit(QUARANTINED)


def _caption_all(source: "CaptionerSource", pixels: "list[np.ndarray]") -> "list[Caption]":
    if not pixels:
        return []
    from batchcap.captioner.bundle import Bundle
    from batchcap.captioner.quiet import quiet_stderr

    batch_size = min(32, len(pixels))
    with quiet_stderr():
        if not isinstance(source, Bundle):
            loaded = source.load_captioner(batch_size=batch_size, num_threads=os.cpu_count() or 1)
            return loaded.caption(pixels)
        # Not `load_captioner`, whose warming up takes as long as a batch.
        from batchcap.captioner.captioner import Captioner

        return Captioner(source, batch_size=batch_size).caption(pixels)


def _caption_fields(found: "Caption") -> dict[str, Any]:
    values = asdict(found)
    return {"caption": values.pop("text"), **values}
