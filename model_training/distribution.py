"""The same step on one device or on several, each with a share of the batch.

Devices may be the GPUs of one machine, or those of several workers: processes, mostly on machines of their
own, that run the same program in lockstep. One of them is the chief, who alone writes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec

import keras
import numpy as np
import tensorflow as tf

# Any large prime: apart from each other, seeds have nothing to do with each other.
_APART = 1_000_003

_P = ParamSpec("_P")


def default_strategy() -> tf.distribute.Strategy:
    """The workers that TF_CONFIG names; else all GPUs of this machine; else what TensorFlow takes by itself.

    Within a strategy's scope, it is that one. Workers have to find each other before TensorFlow computes
    anything, so this comes first.
    """
    if tf.distribute.has_strategy():
        return tf.distribute.get_strategy()
    cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec().as_dict()
    if sum(map(len, cluster.values())) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


class Replicas:
    """Runs a step on every replica of a network.

    Args:
        strategy: how many there are, and where.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self.count: int = strategy.num_replicas_in_sync
        self.is_chief = _is_chief(strategy)
        self._sum = self.compile(tf.reduce_sum)

    def on_chief(self, write: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Calls what one worker has to do for all: everything that others can see."""
        if self.is_chief:
            write(*args, **kwargs)

    def from_chief(self, number: float) -> float:
        """The number that the chief has; each worker waits for all the others."""
        if self.count == 1:
            return number
        # The chief has the first replica; the rows of the others are what is added to fill up the batch.
        return float(self._sum(*self.split([np.array([number])])))

    def wait(self) -> None:
        """Waits until every worker is here."""
        self.from_chief(0.0)

    @contextmanager
    def chief_first(self) -> Iterator[None]:
        """Within it, workers other than the chief begin when the chief is done."""
        if not self.is_chief:
            self.wait()
        yield
        if self.is_chief:
            self.wait()

    def split(self, batch: Sequence[np.ndarray]) -> list[Any]:
        """Gives each replica its share of each array of a batch, in the order of the replicas.

        Shares are equally large: the last rows may be zeros, which a step has to leave out of its sums (a
        token id of zero is padding anyway).
        """
        if self.count == 1:
            return [tf.convert_to_tensor(array) for array in batch]
        missing = -len(batch[0]) % self.count
        padded = [np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in batch]
        share = len(padded[0]) // self.count

        def of_replica(context: tf.distribute.experimental.ValueContext, array: np.ndarray) -> tf.Tensor:
            start = context.replica_id_in_sync_group * share
            return tf.convert_to_tensor(array[start : start + share])

        distribute = self.strategy.experimental_distribute_values_from_function
        return [distribute(lambda context, array=array: of_replica(context, array)) for array in padded]

    def gather(self, value: Any, length: int) -> np.ndarray:
        """Puts the first axis of what `split` took apart together again, without the rows added there.

        Args:
            value: what a step gave on each replica.
            length: rows of the batch.
        """
        return np.asarray(self.strategy.gather(value, axis=0))[:length]

    def compile(self, step: Callable[..., Any], *, reduced: bool = True) -> Callable[..., Any]:
        """Compiles a step that runs on every replica.

        Args:
            step: takes what `split` gives; sums over its rows are sums over its share of the batch.
            reduced: whether the results are added up over the replicas; else each replica keeps its own.
        """

        def run(*shares: Any) -> Any:
            results = self.strategy.run(step, args=shares)
            if not reduced:
                return results
            return tf.nest.map_structure(
                lambda value: self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None), results
            )

        # Shapes change from batch to batch in the number of tokens and, at the end, of images. No step has a
        # branch or loop of Python over tensors, and to look for them makes tracing half as long again.
        compiled: Callable[..., Any] = tf.function(run, reduce_retracing=True, autograph=False)
        return compiled


def sum_over_replicas(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Within a step: the sum over all replicas, which each of them gets."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)  # type: ignore[no-any-return]


def own_rows(draw: Callable[[tf.Tensor], tf.Tensor], share: tf.Tensor) -> tf.Tensor:
    """Within a step: the random numbers of this replica's rows, those that one device would give them.

    Args:
        draw: takes the number of rows of the whole batch and gives [rows, ...]. TensorFlow draws row after
            row, so that the rows which `Replicas.split` adds at the end change nothing.
        share: [rows of this replica, ...].
    """
    context = tf.distribute.get_replica_context()
    rows = tf.shape(share)[0]
    start = rows * context.replica_id_in_sync_group
    return draw(rows * context.num_replicas_in_sync)[start : start + rows]


def vary_dropout(model: keras.Model) -> None:
    """Lets each replica of a network drop other units.

    Keras hands the same seed to all of them, and then the first rows of all shares would lose the same units.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            layer.seed_generator.next = partial(_next_seed, layer.seed_generator)


def _next_seed(generator: keras.random.SeedGenerator, ordered: bool = True) -> tf.Tensor:
    seed = type(generator).next(generator, ordered)
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return seed + tf.cast(tf.stack([replica * _APART, 0]), seed.dtype)


def _is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether the first replica is here."""
    workers = strategy.cluster_resolver
    if workers is None or workers.task_type is None:
        return True
    first = "chief" if "chief" in workers.cluster_spec().jobs else "worker"
    return bool((workers.task_type, workers.task_id) == (first, 0))


def variables_of(*owners: keras.Model | keras.optimizers.Optimizer) -> list[keras.Variable]:
    """All variables of networks and optimizers, states of random generators included."""
    return [variable for owner in owners for variable in owner.variables]
