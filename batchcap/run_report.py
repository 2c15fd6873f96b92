"""What a run says of itself: `Progress` while it goes on, `RunReport` when it has ended."""

from collections import Counter
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Self

from batchcap.balance import StageTimes


@dataclass(slots=True)
class RunReport:
    """What a run did.

    Args:
        run_id: None until the run has taken the catalog.
        captioned: files that got a caption from the model.
        known: files whose content has a caption already: they were moved, copied or merely touched.
        unchanged: files that were done already.
        quarantined: files that this run put into quarantine, by reason.
        still_quarantined: files that are in quarantine from earlier and were not tried again.
        stale: files that keep the caption of another model.
        vanished: files that were there once and are gone.
        moved: those of them whose content is at another place now.
        skipped: names that the scan left out, by reason.
        timed_files: files that were committed after the first batch, hence without the start-up.
        captioning_s: seconds in which they were.
        total_s: seconds of the whole run.
        stages: where these `captioning_s` seconds went; None where there was at most one commit.
    """

    run_id: str | None = None
    captioned: int = 0
    known: int = 0
    unchanged: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    still_quarantined: int = 0
    stale: int = 0
    vanished: int = 0
    moved: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    timed_files: int = 0
    captioning_s: float = 0.0
    total_s: float = 0.0
    stages: StageTimes | None = None

    @property
    def images_per_s(self) -> float | None:
        """Files per second between the first and the last commit; None where there was one commit."""
        return self.timed_files / self.captioning_s if self.captioning_s else None

    def describe(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        # Not asdict(): it makes other counts of a Counter.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        stages = self.stages and self.stages.describe()
        return {**values, "images_per_s": self.images_per_s, "stages": stages}


class Progress:
    """What a run tells whoever watches it, between `with` and its end; this one ignores it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def plan(self, files: int) -> None:
        """So many more files are to be looked at."""

    def advance(self, files: int, quarantined: int) -> None:
        """So many more files are done, and so many of them are in quarantine."""

    def finish(self, report: RunReport) -> None:
        """The run has ended well."""
