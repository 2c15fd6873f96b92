"""The same step on one device or on several, each with a share of the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def default_strategy() -> tf.distribute.Strategy:
    """All GPUs of this machine, or what TensorFlow takes by itself where there is no more than one.

    Within a strategy's scope, it is that one.
    """
    if tf.distribute.has_strategy() or len(tf.config.list_logical_devices("GPU")) < 2:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy()


class Replicas:
    """Runs a step on every replica of a network.

    Args:
        strategy: how many there are, and where.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self.count: int = strategy.num_replicas_in_sync

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

        # Shapes change from batch to batch in the number of tokens and, at the end, of images.
        compiled: Callable[..., Any] = tf.function(run, reduce_retracing=True)
        return compiled


def sum_over_replicas(values: list[tf.Tensor]) -> list[tf.Tensor]:
    """Within a step: the sum over all replicas, which each of them gets."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)  # type: ignore[no-any-return]


def variables_of(*owners: keras.Model | keras.optimizers.Optimizer) -> list[keras.Variable]:
    """All variables of networks and optimizers, states of random generators included."""
    return [variable for owner in owners for variable in owner.variables]
