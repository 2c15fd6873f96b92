"""Trains on a Ray cluster: `python jobs/train.py --address auto --num_workers 4 --use_gpu --data ...`.

The other options are those of `train_model`. Every worker reads the data and the cache, and one of them
writes the results: what `--data`, `--captions`, `--cache_dir` and `--artifact_dir` name (and `--text`,
`--init`, `--teacher` and the splits) has to be there on every machine, under the same path: on shared
storage.
Without `--address`, Ray starts on this machine.
"""

import argparse
import threading
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import ray
import typer
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.util.queue import Queue

from batchcap.captioner.quiet import quiet_stderr
from batchcap.errors import BatchcapError, TrainingError
from model_training.config import TrainConfig
from model_training.train_model import app


def work(options: dict) -> None:
    """What every worker does."""
    from model_training.training import train

    train(options["config"], report=options["lines"].put)


def fit(config: TrainConfig, own: argparse.Namespace) -> Path:
    """Trains on the cluster, and prints here what the chief of the workers reports."""
    paths = {f.name: p.absolute() for f in fields(config) if isinstance(p := getattr(config, f.name), Path)}
    teachers = tuple(path.absolute() for path in config.teachers)
    with quiet_stderr():
        from ray.train.tensorflow import TensorflowTrainer

        try:
            ray.init(
                own.address or "local", include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        except Exception as error:  # Ray has no class of its own for it.
            reason = " ".join(str(error).split())
            raise TrainingError(f"Ray can't start, or is not where --address says: {reason}") from error
        lines = Queue()
    printer = threading.Thread(target=lambda: [print(line, flush=True) for line in iter(lines.get, None)])
    printer.start()
    try:
        TensorflowTrainer(
            work,
            train_loop_config={"config": replace(config, **paths, teachers=teachers), "lines": lines},
            scaling_config=ScalingConfig(num_workers=own.num_workers, use_gpu=own.use_gpu),
            # Ray makes sure that this folder is shared.
            run_config=RunConfig(storage_path=str(paths["cache_dir"] / "ray")),
        ).fit()
    except TrainingFailedError as error:
        failed = getattr(error, "worker_failures", {}).values()
        failures = [getattr(each, "_base_exc", each) for each in failed]
        ours = (each for each in failures if isinstance(each, BatchcapError))
        raise next(ours, TrainingError(f"the workers stopped: {failures or error}")) from error
    finally:
        lines.put(None)
        printer.join()
    return config.artifact_dir


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        usage="%(prog)s [OPTIONS] [OPTIONS of train_model]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--num_workers", "--num-workers", type=int, default=1, help="processes that train")
    parser.add_argument("--use_gpu", "--use-gpu", action="store_true", help="give each a GPU")
    parser.add_argument("--address", help="of the cluster; auto for the one that this machine belongs to")
    own, others = parser.parse_known_args()
    if not others or {"-h", "--help"} & set(others):
        parser.print_help()
        others = ["--help"]
    typer.main.get_command(app)(others, obj=partial(fit, own=own))
