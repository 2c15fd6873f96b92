"""Where a network runs: TensorFlow with frozen weights, XLA on a GPU, or OpenVINO on a CPU.

A runtime takes a function from one tensor to tensors and gives back the same function, compiled. On a CPU,
weights that are constants let TensorFlow fold batch norm and activation into the convolution before them, and
lay the weights out once. XLA is never used there: it makes convolutions many times slower.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from batchcap.captioner.bundle import RuntimeName
from batchcap.errors import BatchcapError, UsageError

# A function on arrays or tensors; what it gives has its tensors in the order of `tf.nest.flatten`.
Compiled: TypeAlias = Callable[[Any], list[Any]]

RUNTIME_VARIABLE = "BATCHCAP_RUNTIME"


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def resolve_runtime(name: RuntimeName) -> RuntimeName:
    """The runtime that `auto` stands for: what the environment says, else OpenVINO on a CPU that has it.

    Raises:
        UsageError: the environment names no runtime, or OpenVINO is asked for and not installed.
    """
    chosen = os.environ.get(RUNTIME_VARIABLE, "auto") if name == "auto" else name
    is_installed = importlib.util.find_spec("openvino") is not None
    if chosen == "auto":
        return "openvino" if is_installed and not has_gpu() else "tensorflow"
    if chosen not in ("tensorflow", "openvino"):
        raise UsageError(f"{RUNTIME_VARIABLE}={chosen} is no runtime; use auto, tensorflow or openvino")
    if chosen == "openvino" and not is_installed:
        raise UsageError("OpenVINO is not installed; pip install 'batchcap[openvino]'")
    return chosen  # type: ignore[return-value]


def compile_tensorflow(
    function: Callable[[tf.Tensor], Any], signature: tf.TensorSpec, *, use_xla: bool = False
) -> Compiled:
    """Traces a function once.

    Args:
        function: from one tensor to any structure of tensors.
        signature: shape and type of its argument.
        use_xla: has XLA compile it, for a GPU; all its shapes must be fixed.
    """
    traced = tf.function(
        function, input_signature=[signature], jit_compile=use_xla, autograph=False
    ).get_concrete_function()
    return lambda value: tf.nest.flatten(traced(tf.convert_to_tensor(value)))


def freeze(function: Callable[[tf.Tensor], Any], variables: Iterable[keras.Variable]) -> Callable[[Any], Any]:
    """A function with variables as constants of its graph, with the values that they have now.

    For a CNN on a CPU. A decoder, whose weights are plain matrices, gains nothing from it.

    Args:
        function: from one tensor to any structure of tensors.
        variables: those that it reads; others stay variables.
    """
    values = [(variable, variable.numpy()) for variable in variables]

    def frozen(x: tf.Tensor) -> Any:
        # Made in here: a tensor of the outside would be an input of the graph, and nothing could be folded
        # into it.
        constants = [(variable, tf.constant(value)) for variable, value in values]
        with keras.StatelessScope(state_mapping=constants):
            return function(x)

    return frozen


def compile_openvino(
    function: Callable[[tf.Tensor], tf.Tensor], signature: tf.TensorSpec, num_threads: int | None
) -> Compiled:
    """Has OpenVINO compile a function for the CPU, in single precision.

    Args:
        function: from one tensor to one tensor, without loops.
        signature: shape and type of its argument, fixed.
        num_threads: CPU threads; None leaves it to OpenVINO.

    Raises:
        BatchcapError: OpenVINO can't convert or compile it.
    """
    import openvino

    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if num_threads:
        properties["INFERENCE_NUM_THREADS"] = str(num_threads)
    try:
        traced = tf.function(function, input_signature=[signature], autograph=False).get_concrete_function()
        converted = openvino.convert_model(traced)
        # Of activations with a gradient of their own, such as swish, it makes outputs as well.
        wanted = [converted.output(tensor.name).get_node().input_value(0) for tensor in traced.outputs]
        model = openvino.Model(wanted, converted.get_parameters())
        compiled = openvino.Core().compile_model(model, "CPU", properties)
    except Exception as error:  # Its errors have no base of their own.
        raise BatchcapError(f"OpenVINO can't run this network: {' '.join(str(error).split())}") from error

    def run(value: Any) -> list[Any]:
        return list(compiled(np.asarray(value)).values())

    return run
