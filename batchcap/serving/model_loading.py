"""A captioner, loaded as a server wants it: ready for the first picture, quick for one that comes alone."""

import os

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.protocol import CaptionerProtocol, CaptionerSource
from batchcap.captioner.quiet import quiet_stderr

# A picture that comes alone pays for as many; a CPU is hardly faster with more.
_CNN_BATCH_SIZE_OF_CPU = 4


def load_captioner(
    source: CaptionerSource, *, batch_size: int, num_threads: int | None = None
) -> CaptionerProtocol:
    """Loads a captioner into this process.

    Args:
        source: the model.
        batch_size: pictures that go through it at once, at most.
        num_threads: CPU threads of it; None is all there are.

    Raises:
        BundleError: the weights are damaged.
    """
    with quiet_stderr():
        if not isinstance(source, Bundle):
            return source.load_captioner(
                batch_size=batch_size, num_threads=num_threads or os.cpu_count() or 1
            )
        from batchcap.captioner.captioner import CNN_BATCH_SIZE, Captioner, use_cpu_threads
        from batchcap.captioner.runtime import has_gpu

        if num_threads is not None:
            use_cpu_threads(num_threads)
        chunk = CNN_BATCH_SIZE if has_gpu() else _CNN_BATCH_SIZE_OF_CPU
        captioner = Captioner(source, batch_size=batch_size, cnn_batch_size=chunk, num_threads=num_threads)
        captioner.warm_up()
        return captioner
