"""AdamW with warm-up and cosine decay, for the network and, more slowly, for its CNN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import keras
import tensorflow as tf

from model_training.config import TrainConfig
from model_training.distribution import sum_over_replicas


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How weights follow their gradients.

    Args:
        lr: peak learning rate.
        total_steps: steps until it is zero again, along a cosine.
        warmup_steps: of them, steps in which it rises from zero, along a line.
        weight_decay: decoupled (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), matrices only.
        clip_norm: the largest norm of all gradients together.
        ema_momentum: share of the old value in the moving average of each weight; 0 keeps none.
        cnn_lr: learning rate of the CNN, as a share of `lr`.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_momentum: float = 0.0
    cnn_lr: float = 0.1

    @classmethod
    def of_run(cls, config: TrainConfig, *, lr: float, total_steps: int) -> Self:
        """What a run's options say of a stage with this learning rate and so many steps."""
        return cls(
            lr=lr,
            total_steps=total_steps,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            ema_momentum=config.ema_momentum,
            cnn_lr=config.cnn_lr,
        )


class Optimizer:
    """Changes the weights of a network.

    Args:
        variables: the weights to train.
        cnn_variables: those of the CNN among them.
        config: how.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        cnn_variables: Sequence[keras.Variable],
        config: OptimizerConfig,
    ) -> None:
        of_cnn = {id(variable) for variable in cnn_variables}
        self._config = config
        others = [variable for variable in variables if id(variable) not in of_cnn]
        self.variables = [*others, *(variable for variable in variables if id(variable) in of_cnn)]
        self._parts = [(_adamw(config, config.lr, others), len(others))]
        if len(others) < len(self.variables):
            rest = self.variables[len(others) :]
            self._parts.append((_adamw(config, config.lr * config.cnn_lr, rest), len(rest)))

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """What holds the state."""
        return [optimizer for optimizer, _ in self._parts]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._parts[0][0].learning_rate)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self._parts[0][0].iterations.numpy())

    def apply(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices]) -> None:
        """One step, within `Replicas.compile`.

        Args:
            gradients: of `variables`, of this replica's share of the loss.
        """
        # The norm that counts is that of the whole batch. Keras would clip on each replica and add up then.
        summed = sum_over_replicas([tf.convert_to_tensor(gradient) for gradient in gradients])
        clipped, _ = tf.clip_by_global_norm(summed, self._config.clip_norm)
        # It still adds up over the replicas, which all have the same by now.
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        shares = [gradient / replicas for gradient in clipped]
        start = 0
        for optimizer, count in self._parts:
            stop = start + count
            optimizer.apply(shares[start:stop], self.variables[start:stop])
            start = stop

    def copy_averaged(self, targets: Sequence[keras.Variable]) -> None:
        """Gives the weights to judge and to keep: their averages, where `ema_momentum` is not 0.

        Args:
            targets: of another network of the same shape, in the order of `variables`.
        """
        latest = self.variables
        if self._config.ema_momentum > 0:
            # Keras has no other way to them but one that overwrites weights, and only the optimizer's own.
            averages = [optimizer._model_variables_moving_average for optimizer in self.optimizers]
            latest = [average for of_part in averages for average in of_part]
        for target, variable in zip(targets, latest, strict=True):
            target.assign(variable.numpy())


def cosine_schedule(
    lr: float, *, total_steps: int, warmup_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """From zero to `lr` along a line in the first steps, then back to zero along a cosine."""
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(lr, max(total_steps, 1))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(total_steps - warmup_steps, 1),
        warmup_target=lr,
        warmup_steps=warmup_steps,
    )


def _adamw(
    config: OptimizerConfig, lr: float, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer:
    schedule = cosine_schedule(lr, total_steps=config.total_steps, warmup_steps=config.warmup_steps)
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=config.weight_decay,
        use_ema=config.ema_momentum > 0,
        ema_momentum=config.ema_momentum,
        ema_overwrite_frequency=None,
    )
    optimizer.exclude_from_weight_decay([variable for variable in variables if len(variable.shape) < 2])
    optimizer.build(list(variables))
    return optimizer
