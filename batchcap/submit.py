"""Hands `index` to a Ray cluster as a job, follows it, and stops it: Ray's Jobs API, in our words.

A job runs on the cluster's head and does not need whoever submitted it. What it did is in the catalog, so
that the same command, submitted again, goes on where a job ended, however it ended.
"""

import asyncio
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from batchcap.errors import ClusterError, UsageError

_CONNECT_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 60.0
# Ray tells the job to end and kills it 3 s later.
_STOP_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.5
_FAILED = 1
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a job is.

    Args:
        job_id: its name on the cluster.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what Ray says of it.
        exit_status: of the command; None before its end, and where Ray ended it.
    """

    job_id: str
    status: str
    message: str
    exit_status: int | None

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status_to_show(self) -> int:
        """The exit status of a command that followed the job to its end: that of the job."""
        if self.status == "SUCCEEDED":
            return 0
        # A signal that ended it, Ray gives as a negative number.
        return self.exit_status if self.exit_status and self.exit_status > 0 else _FAILED


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of the head's job server, `http://HOST:PORT`; the port often is 8265.

    Raises:
        UsageError: the address is none.
        ClusterError: nobody answers there, or not to us.
    """

    def __init__(self, address: str) -> None:
        url = urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UsageError(
                f"--address {address}: give http://HOST:8265, where the cluster's head takes jobs"
            )
        self.address = address
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
        except ValueError as error:
            raise UsageError(f"--address {address}: {error}") from error
        try:
            # Ray would wait for minutes.
            socket.create_connection((url.hostname, port), _CONNECT_TIMEOUT_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ClusterError(
                f"no cluster answers at {address}: {reason}; see that its head runs, and that this is the "
                "port of its dashboard"
            ) from error
        # Read when Ray is imported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with self._errors(), _named_in_environment(address):
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
            self._client = JobSubmissionClient(address)

    def submit(self, arguments: Sequence[str]) -> str:
        """Has the cluster run `index`.

        Args:
            arguments: of `index`; the cluster to join is added.

        Returns:
            The name of the job.

        Raises:
            ClusterError: the cluster does not take it.
        """
        entrypoint = shlex.join(["batchcap", "index", "--address", "auto", *arguments])
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                with self._errors():
                    return str(self._client.submit_job(entrypoint=entrypoint))
            except ClusterError as error:
                # A head that has just started answers before it can take jobs.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_INTERVAL_S)

    def follow(self, job_id: str, write: Callable[[str], object]) -> JobState:
        """Passes a job's log on until the job ends.

        Args:
            job_id: of the job.
            write: is given the log, piece by piece, from its beginning.

        Returns:
            How it ended.

        Raises:
            ClusterError: there is no such job, or the connection was lost.
        """
        self.state(job_id)
        with self._errors(f"the log of {job_id} can't be followed"):
            asyncio.run(self._pass_on(job_id, write))
        return self._wait_for_end(job_id)

    def state(self, job_id: str) -> JobState:
        """How far a job is.

        Raises:
            UsageError: that is no name of a job.
            ClusterError: there is no such job.
        """
        if not re.fullmatch(r"[\w.-]+", job_id):
            raise UsageError(f"{job_id} is no name of a job")
        with self._errors():
            found = self._client.get_job_info(job_id)
        message = " ".join((found.message or "").split())
        return JobState(job_id, str(found.status), message, found.driver_exit_code)

    def stop(self, job_id: str) -> JobState:
        """Ends a job, and waits for it; does nothing to one that has ended.

        Returns:
            How it ended.

        Raises:
            UsageError, ClusterError: as for `state`; or it did not end.
        """
        if not self.state(job_id).has_ended:
            with self._errors():
                self._client.stop_job(job_id)
        return self._wait_for_end(job_id)

    def _wait_for_end(self, job_id: str) -> JobState:
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while not (state := self.state(job_id)).has_ended:
            if time.monotonic() > deadline:
                raise ClusterError(f"job {job_id} has not ended after {_STOP_TIMEOUT_S:g} s: {state.message}")
            time.sleep(_POLL_INTERVAL_S)
        return state

    async def _pass_on(self, job_id: str, write: Callable[[str], object]) -> None:
        async for lines in self._client.tail_job_logs(job_id):
            write(lines)

    @contextmanager
    def _errors(self, doing: str = "") -> Iterator[None]:
        """What Ray's client raises, in one line."""
        try:
            yield
        except Exception as error:
            # Errors of HTTP, of Ray, of a missing library: of many families.
            raise ClusterError(f"{doing or 'the cluster'} at {self.address}: {_what(error)}") from error


@contextmanager
def _named_in_environment(address: str) -> Iterator[None]:
    """Sets the variable that Ray's client believes more than its caller; without it, RAY_ADDRESS wins."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before


def _what(error: Exception) -> str:
    """One line of what Ray's client says, and what to do."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if "ray[default]" in text:
        return "Ray's job client is not installed; pip install 'batchcap[cluster]'"
    if name == "AuthenticationError":
        what = "wants a token" if "required" in text.lower() else "does not accept our token"
        return f"{what}; put the cluster's into RAY_AUTH_TOKEN or ~/.ray/auth_token, with RAY_AUTH_MODE=token"
    if "does not exist" in text and "status code 404" in text:
        return "there is no such job (they are forgotten when the cluster ends)"
    if "ersion" in text and "Ray" in text:
        return f"its Ray does not fit ours: {text}"
    if isinstance(error, ValueError | KeyError):
        return "what answers is no job server of Ray's"
    # The rest of it is a traceback of the server's.
    return text.partition("Traceback")[0].strip()[:300] or name
