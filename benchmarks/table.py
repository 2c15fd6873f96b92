"""What the benchmarks found, as a Markdown table: one row a question.

docs/generate.py puts it into the README; benchmarks/run_all.py writes the files that it reads.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
_HEAD = "| question | measured | answer | on |\n|---|---|---|---|\n"

Result = dict[str, Any]


class Row(NamedTuple):
    """One question.

    Args:
        question: what somebody wants to know.
        measured: how it was measured.
        answer: what came out.
    """

    question: str
    measured: str
    answer: str


def benchmarks_table(results: Path = RESULTS) -> str:
    """The table of all results in a folder, in the order of `ROWS`.

    Args:
        results: one JSON object a file; there need not be any.
    """
    paths = sorted(results.glob("*.json"), key=lambda path: path.stem)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not found:
        return "No results are kept yet; `make bench` makes them.\n"
    # Sorting is stable: of several files of one benchmark the names decide.
    found.sort(key=lambda result: [*ROWS, result["benchmark"]].index(result["benchmark"]))
    lines = [
        f"| {row.question} | {row.measured} | {row.answer} | {_machine(result)} |\n"
        for result in found
        for row in ROWS.get(result["benchmark"], lambda _: [])(result)
    ]
    others = sorted({f"`{result['benchmark']}`" for result in found if result["benchmark"] not in ROWS})
    more = f"\nMeasured as well, in `benchmarks/results`: {', '.join(others)}.\n" if others else ""
    return f"{_HEAD}{''.join(lines)}{more}"


def _index_throughput(result: Result) -> Iterable[Row]:
    by_runtime: dict[str, list[Result]] = {}
    for run in result["runs"]:
        by_runtime.setdefault(run["runtime"], []).append(run)
    # The one that is chosen where it is installed.
    runtime = "openvino" if "openvino" in by_runtime else "tensorflow"
    runs = by_runtime[runtime]
    measured = f"{_photos(result)}, CNN on {_RUNTIMES[runtime]}"

    def shares(ratio: str, part: str, whole: str) -> str:
        return "; ".join(
            f"{run[ratio]:.2f} {_beams(run['num_beams'])} "
            f"({_rate(run['images_per_s'][part])} of {_rate(run['images_per_s'][whole])} images/s)"
            for run in runs
        )

    yield Row(
        "What does `batchcap index` keep of the captioner's rate, end to end?",
        f"{measured}; start-up left out",
        shares("index_to_captioner", "index", "captioner"),
    )
    yield Row(
        "What does the captioner keep of its CNN's rate?",
        f"{measured}; pictures in memory",
        shares("captioner_to_cnn", "captioner", "cnn"),
    )
    if stages := runs[0]["stage_share"]:
        shown = sorted(stages.items(), key=lambda stage: -stage[1])
        yield Row(
            "Which stage of a run binds?",
            f"{measured}, {_beams(runs[0]['num_beams'])}; the share of the time in which each is busy",
            ", ".join(f"{stage} {share:.0%}" for stage, share in shown),
        )
    if faster := result.get("openvino_to_tensorflow"):
        yield Row(
            "What does OpenVINO save, end to end?",
            f"{_photos(result)}, `batchcap index` with the CNN on either",
            "; ".join(
                f"{ratio:.2f} times TensorFlow's rate, {_beams(int(num_beams))}"
                for num_beams, ratio in faster.items()
            ),
        )


def _original_way(result: Result) -> Iterable[Row]:
    rates = result["images_per_s"]
    yield Row(
        "How much faster are batches than the original's way, with the same weights?",
        f"{_photos(result)}, greedy, from files to captions: batches of {result['batch_size']} against one "
        "picture at a time by eager Keras calls, the whole prefix again at each step; of "
        f"{result['original_images']} captions of the same pixels {result['captions_same']} are the same",
        f"{result['ours_to_original_files']:.1f} times ({_rate(rates['ours_files'])} against "
        f"{_rate(rates['original_files'])} images/s); without the decoding of pictures "
        f"{result['ours_to_original_pixels']:.1f} times",
    )


def _plain_ray(result: Result) -> Iterable[Row]:
    rates = result["images_per_s"]
    yield Row(
        "How much faster is `batchcap index` than a plain Ray Data job, with the same weights?",
        f"{_photos(result)}, greedy, start-up left out of both; the plain job is `read_images`, batches of "
        "32 through a `tf.function` with the whole prefix at each step, `write_parquet`",
        f"{result['index_to_plain']:.1f} times ({_rate(rates['index'])} against {_rate(rates['plain'])} "
        "images/s)",
    )


def _decoder(result: Result) -> Iterable[Row]:
    shape = (
        f"decoder alone, {result['model']}: {_blocks(result)}, "
        f"{result['dec_heads']} heads of {result['key_dim']}, {result['vocabulary_size']:,} words, "
        f"{result['image_vectors']} image vectors; {result['tokens']} tokens"
    )
    batches = sorted(run["batch_size"] for run in result["runs"] if run["attention"] == "absorbed")
    batch = 64 if 64 in batches else batches[0]
    rates = {
        run["attention"]: _rate(run["images_per_s"])
        for run in result["runs"]
        if run["num_beams"] == 1 and (run["batch_size"] == batch or run["attention"] == "uncached")
    }
    to_keys_values = result["absorbed_to_keys_values"][f"batch {batch}, beams 1"]
    to_uncached = result["absorbed_to_uncached"][f"batch {batch}"]
    to_eager = result["absorbed_to_eager"][f"batch {batch}"]
    yield Row(
        "What do absorbed projections save?",
        f"{shape}, greedy, batches of {batch}",
        f"{to_keys_values:.1f} times the rate of a cache of keys and values ({rates['absorbed']} against "
        f"{rates['keys_values']} images/s), {to_uncached:.0f} times that without a cache, "
        f"{to_eager:.0f} times the original's way",
    )
    if costs := result.get("cost_to_greedy"):
        yield Row(
            "What does beam search cost?",
            f"{shape}, absorbed projections",
            "; ".join(
                f"{cost:.2f} times greedy's time with {beams.removeprefix('beams ')} beams"
                for beams, cost in costs["absorbed"].items()
            ),
        )


def _decode(result: Result) -> Iterable[Row]:
    """Of a camera's JPEG, the largest of 12 megapixels or less; the others are in the result."""
    jpegs = [case for case in result["cases"] if case["format"] == "jpeg" and case["megapixels"] <= 12]
    case = max(jpegs, key=lambda case: case["megapixels"])
    ways = {"simplejpeg": "with the extra `fast`", "pillow": "without it", "full": "by plain Pillow"}
    yield Row(
        "What does a photograph cost to decode?",
        f"a JPEG of {case['width']} x {case['height']} pixels and {case['size_bytes'] / 1e6:.1f} MB to "
        f"{result['image_size']} x {result['image_size']}, one thread",
        ", ".join(f"{case['ms'][way]:.0f} ms {what}" for way, what in ways.items() if way in case["ms"]),
    )


def _training_step(result: Result) -> Iterable[Row]:
    original = result["original"]
    ((name, ratio),) = (item for item in original.items() if item[0].startswith("ours_with_features_over_"))
    epochs = re.sub(r"\D", "", name)
    yield Row(
        "How much faster is training than in the original's way?",
        f"{_blocks(result)} of the decoder, features made once for "
        f"{epochs} epochs, against the picture decoded and the CNN run for each caption in each epoch",
        f"{ratio:.1f} times ({original['captions_per_s']:.0f} captions/s in the original's way)",
    )


def _other_captioners(result: Result) -> Iterable[Row]:
    if "skipped" in result:
        return
    names = {"blip": "BLIP-base", "git": "GIT-base", "vit_gpt2": "ViT-GPT2"}
    rates = {name: of["images_per_s"] for name, of in result["captioners"].items()}
    yield Row(
        "How fast is the model that ships beside larger ones?",
        f"pictures in memory, greedy, {result['tokens']} tokens, each at its best batch size; the others by "
        "transformers on torch, with random weights: they are larger networks and write better captions",
        ", ".join(
            f"{ratio:.0f} times {names[name]} ({_rate(rates[name])} images/s)"
            for name, ratio in result["ours_to"].items()
        )
        + f", {_rate(rates['ours'])} images/s itself",
    )


def _scaling(result: Result) -> Iterable[Row]:
    runs = {int(files): of for files, of in result["runs"].items()}
    largest = max(runs)
    yield Row(
        "Does an image cost more in a larger collection?",
        "tiny pictures and a captioner that costs nothing, so that all else shows: plan, reading, Ray, SQL, "
        "Parquet",
        ", ".join(
            f"{statistics.median(run['ms_per_image'] for run in of):.2f} ms an image of {files:,}"
            for files, of in sorted(runs.items())
        ),
    )
    yield Row(
        "How much memory does a run take?",
        f"the same, {largest:,} files; the most of a process of each kind, what they share counted in each",
        ", ".join(
            f"{kind.replace('_', ' ')} {_largest(runs[largest], kind):.0f} MiB"
            for kind in runs[largest][0]["memory_mib"]
        ),
    )


def _startup(result: Result) -> Iterable[Row]:
    seconds = result["median_s"]
    yield Row(
        "How long does `batchcap index` take to its first caption?",
        "a new process, neither Ray nor TensorFlow running, the model that ships",
        f"{seconds['first_commit']:.1f} s on Ray; {seconds['few_files']:.1f} s to the end of a run of 128 "
        "files, which does without; "
        f"{seconds['nothing_to_do']:.1f} s where there is nothing to do",
    )


def _resume(result: Result) -> Iterable[Row]:
    plans, files = result["plans"], result["files"]
    yield Row(
        "What does it cost to find out what is left of a large collection?",
        f"{files:,} tiny files, of which {result['left']:,} are not done; SQLite",
        f"{statistics.median(plan['seconds'] for plan in plans):.0f} s, "
        f"{max(plan['peak_mib'] for plan in plans):.0f} MiB, "
        f"{max(plan['photographs_opened'] for plan in plans):,} photographs opened",
    )


def _simulation(result: Result) -> Iterable[Row]:
    held = [tenth["driver_mib"] for tenth in result["tenths"]]
    yield Row(
        "How many images does one driver see through?",
        f"{result['images']:,} images that are not there, a captioner that costs nothing: plan, Ray, commits "
        "in SQLite, Parquet",
        f"{result['images_per_s']:,.0f} images/s; the driver holds {held[1]:,.0f} MiB after two tenths, "
        f"{held[-1]:,.0f} MiB at the end, {max(held):,.0f} MiB at most",
    )


def _serving(result: Result) -> Iterable[Row]:
    waits, rates = result["wait_ms"], result["images_per_s"]
    measured = f"{_photos(result)}, {_beams(result['num_beams'])}, clients on the same machine"
    yield Row(
        "What does `batchcap serve` keep of the captioner's rate?",
        f"{measured}: {result['clients']} at once",
        f"{result['served_to_captioner']:.2f} "
        f"({_rate(rates['served'])} of {_rate(rates['captioner'])} images/s)",
    )
    yield Row(
        "How long does a client of `batchcap serve` wait?",
        measured,
        f"{waits['alone']['median']:,.0f} ms alone, {waits['served']['median']:,.0f} ms among "
        f"{result['clients']} (one of twenty {waits['served']['p95']:,.0f} ms, of a hundred "
        f"{waits['served']['p99']:,.0f} ms)",
    )
    overload = result["overload"]
    answers = overload["answers"]
    yield Row(
        "What does `batchcap serve` do with more than it can take?",
        f"{measured}: {overload['clients']} at once, with room for {2 * result['clients']}",
        f"{_rate([overload['images_per_s']])} images/s captioned; {answers.get('429', 0):,} of "
        f"{sum(answers.values()):,} requests told to come back (429), "
        f"{sum(answers.values()) - answers.get('429', 0) - answers.get('200', 0):,} failed",
    )
    if memory := result["memory"]:
        server = memory["rss_mib"]["server"]
        yield Row(
            "Does `batchcap serve` grow?",
            f"{memory['requests']:,} requests, tiny pictures, a captioner that costs nothing",
            f"{server[0]:.0f} MiB, then {server[-1]:.0f} MiB",
        )


def _catalog_million(result: Result) -> Iterable[Row]:
    measured = f"{result['rows']:,} captions in {_DATABASES[result['database']]}"
    searches = {name: each for name, each in result["search_ms"].items() if each}
    named = {"to_100": "up to 100 hits", "to_10000": "up to 10,000", "more": "more"}
    yield Row(
        "How long does a search take in a large catalog?",
        f"{measured}: all hits counted, the first 20 shown",
        "; ".join(
            f"{named[name]} {each['p50']:,.0f} ms (one of twenty {each['p95']:,.0f} ms)"
            for name, each in searches.items()
        ),
    )
    yield Row(
        "How long does a run take that finds nothing to do?",
        f"{measured}: the plan, without listing the files",
        f"{result['plan_s']:.1f} s",
    )


def _readers(result: Result) -> Iterable[Row]:
    waits = {name: f"{each['p99']:,.0f} ms" for name, each in result["wait_ms"].items()}
    yield Row(
        "Does a run keep those waiting who search?",
        f"{result['rows']:,} captions in {_DATABASES[result['database']]}, {result['readers']} readers",
        f"one search of a hundred takes {waits['run']} beside a run, {waits['work']} beside other work",
    )


# What a question's benchmark is called, and its rows.
ROWS: dict[str, Callable[[Result], Iterable[Row]]] = {
    "index_throughput": _index_throughput,
    "plain_ray": _plain_ray,
    "original_way": _original_way,
    "decoder": _decoder,
    "decode": _decode,
    "other_captioners": _other_captioners,
    "scaling": _scaling,
    "startup": _startup,
    "resume": _resume,
    "simulation": _simulation,
    "serving": _serving,
    "training_step": _training_step,
    "catalog_million": _catalog_million,
    "readers": _readers,
}
_DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
_RUNTIMES = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}


def _photos(result: Result) -> str:
    made_up = " made-up" if result["made_up"] else ""
    size = f"{result['image_width']} x {result['image_height']} pixels"
    return f"{result['images']:,}{made_up} photographs of {size}"


def _blocks(result: Result) -> str:
    count = result["dec_layers"]
    return f"{count} block{'s' if count > 1 else ''} of width {result['embed_dim']}"


def _beams(num_beams: int) -> str:
    return "greedy" if num_beams == 1 else f"with {num_beams} beams"


def _largest(runs: list[Result], kind: str) -> float:
    """Memory of the largest process of a kind, in MiB."""
    return max(float(run["memory_mib"][kind]["rss"]) for run in runs)


def _rate(rates: list[float]) -> str:
    """The median in two or three digits."""
    rate = statistics.median(rates)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _machine(result: Result) -> str:
    processors = f"{result['cpus']} CPUs ({result['processor']})"
    return f"{', '.join([processors, *result['gpus']])}, `{result['commit']}`"
