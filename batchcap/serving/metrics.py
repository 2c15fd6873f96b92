"""What Prometheus is told of a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "batchcap_requests", "Answers.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "batchcap_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._captions = Counter("batchcap_captions", "Pictures captioned.", registry=self._registry)
        self._failures = Counter(
            "batchcap_failures", "Pictures that can't be captioned.", ["reason"], registry=self._registry
        )
        self._batches = Histogram(
            "batchcap_batch_images", "Pictures of a batch.", buckets=_SIZES, registry=self._registry
        )
        self._batch_seconds = Counter(
            "batchcap_batch_seconds", "Seconds in which the model was busy.", registry=self._registry
        )
        self._queued = Gauge(
            "batchcap_queued_images", "Pictures taken and not answered.", registry=self._registry
        )

    def answered(self, method: str, route: str, status: int, elapsed_s: float) -> None:
        """Counts an answer; `route` is the pattern, or the client could make up names without end."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(elapsed_s)

    def captioned(self, size: int, elapsed_s: float) -> None:
        """Counts a batch."""
        self._captions.inc(size)
        self._batches.observe(size)
        self._batch_seconds.inc(elapsed_s)

    def failed(self, reason: str) -> None:
        """Counts a bad picture."""
        self._failures.labels(reason).inc()

    def queued(self, images: int) -> None:
        """Notes how many pictures are on their way."""
        self._queued.set(images)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
