"""Starting Ray on this machine, or joining a cluster, without a word to people and without taking signals.

Importing this module imports Ray.
"""

import ctypes
import logging
import os
import re
import signal
import threading

# Read when Ray is imported or started: no telemetry, no progress bars but our own.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Ray's own C++ chatter: whatever stops a run arrives as an exception as well.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Passed on to the workers, which import TensorFlow: no chatter, and not the whole memory of a GPU at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import ray
import ray.data
import ray.exceptions

from batchcap.balance import ComputeOptions
from batchcap.captioner.quiet import quiet_stderr
from batchcap.errors import ClusterError, PipelineError

# Pixels on their way from loaders to networks; of it, Ray lets the stages fill a part.
_OBJECT_STORE_BYTES = 1024**3
_OBJECT_STORE_BYTES_PER_CPU = 64 * 1024**2
# The last line of a traceback, unless the exception is Ray's wrapping.
_EXCEPTION_LINE = re.compile(r"(?!ray\.)([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)): (.+)")


def start_ray(compute: ComputeOptions | None = None) -> bool:
    """Starts Ray on this machine, or joins a cluster, unless the process has done so; says whether it did.

    The thread that starts it must live as long as Ray is needed.

    Args:
        compute: says which of the two; by default Ray starts here.

    Raises:
        PipelineError: it can't be started.
        ClusterError: the cluster can't be joined.
    """
    if ray.is_initialized():
        return False
    compute = compute or ComputeOptions()
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Ray puts its own handlers of SIGTERM there: one in C++, whatever the thread, and one in Python.
    on_terminate, on_terminate_in_c = signal.getsignal(signal.SIGTERM), _get_c_handler(signal.SIGTERM)
    try:
        with quiet_stderr():
            if compute.address is None:
                ray.init(
                    address="local",  # never somebody else's cluster that happens to run here
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=compute.object_store_bytes
                    or max(_OBJECT_STORE_BYTES, _OBJECT_STORE_BYTES_PER_CPU * (os.cpu_count() or 1)),
                )
            else:
                ray.init(address=compute.address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        if compute.address is None:
            raise PipelineError(f"Ray can't be started: {one_line(error)}") from error
        # Of versions that differ, Ray speaks in several lines.
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ClusterError(
            f"can't join a Ray cluster at {compute.address}: {reason}; this machine must be one of its "
            "nodes, with its token and its versions of Ray and Python; or hand it in: `batchcap submit`"
        ) from error
    _set_c_handler(signal.SIGTERM, on_terminate_in_c)
    if in_main_thread:
        signal.signal(signal.SIGTERM, on_terminate)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # `log_to_driver` does not cover what Ray says of workers that fail, and it says it on stdout, where
    # results are printed. There is no public switch.
    ray._private.worker._worker_logs_enabled = False
    return True


def _get_c_handler(number: int) -> int | None:
    """The address of the function that the system calls at a signal; None is the default action."""
    get = ctypes.pythonapi.PyOS_getsig
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_int]
    handler: int | None = get(number)
    return handler


def _set_c_handler(number: int, handler: int | None) -> None:
    """Sets it, from any thread: `signal.signal` can do so in the main thread alone."""
    set_handler = ctypes.pythonapi.PyOS_setsig
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    set_handler(number, handler)


def one_line(error: BaseException) -> str:
    """What went wrong in a worker, in one line: Ray hands its exceptions on as text, wrapped in its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [match.groups() for line in lines if (match := _EXCEPTION_LINE.match(line))]
    ours = [message for name, message in found if name.startswith("batchcap.")]
    if ours:
        return ours[-1]
    # Of a chain the last one is what was raised in the end.
    if found:
        return ": ".join(found[-1])
    return lines[0] if lines else type(error).__name__
