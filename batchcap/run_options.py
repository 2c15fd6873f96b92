"""How a collection is indexed: what a person, or a program, may choose about a run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from batchcap.balance import ComputeOptions
from batchcap.captioner.protocol import CaptionerSource, vector_size
from batchcap.errors import Reason
from batchcap.loading import DEFAULT_DECODE_TIMEOUT_S

Vectors: TypeAlias = Literal["new", "all", "none"]


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How a collection is indexed.

    Args:
        batch_size: images that a captioner captions at once.
        decode_timeout_s: how long reading and decoding one file may take.
        retry: reasons of the quarantine whose files are tried again though they have not changed.
        recaption: whether files whose caption is another model's are captioned again.
        include: globs of the files that are wanted; none takes all. Without a slash they match a name
            anywhere, with one a path below the source.
        exclude: globs of files and folders that are not wanted.
        allow_vanish: whether more than half of the files may be gone; without it that is taken for a disk
            that isn't there.
        gps: whether it is kept where pictures were taken.
        vectors: of which images the captioner's vector is stored, for searches by likeness: of those that are
            captioned ("new"), also of those that this model captioned without leaving one ("all"), which are
            captioned again for it, or of none.
        cpus: that are shared out at most; None is all.
        wave_size: files that are planned at once.
        in_process_files: so many files are captioned in this process, which takes less long than starting
            Ray; where there are more, Ray's workers caption.
        compute: where the run's processes run: on this machine, or on a Ray cluster.
    """

    batch_size: int = 128
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S
    retry: tuple[Reason, ...] = ()
    recaption: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_vanish: bool = False
    gps: bool = True
    vectors: Vectors = "new"
    cpus: int | None = None
    wave_size: int = 500_000
    in_process_files: int = 512
    compute: ComputeOptions = ComputeOptions()

    @property
    def stores_vectors(self) -> bool:
        """Whether vectors are stored of what is captioned."""
        return self.vectors != "none"

    def fills_vectors(self, captioner: CaptionerSource) -> bool:
        """Whether a captioner's captions that have no vector of their image get one."""
        return self.vectors == "all" and vector_size(captioner) is not None

    def describe(self) -> dict[str, Any]:
        """The options as plain values, for the record."""
        return {**asdict(self), "retry": [reason.value for reason in self.retry]}
