"""Errors of the Hub: retries of transient ones, and messages for the rest."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import errors, get_session

from hftoolkit.contracts import Emit, Message
from hftoolkit.data.sources.address import without_secrets
from hftoolkit.data.sources.http_client import http_client
from hftoolkit.errors import EnvironmentFault

httpx = http_client()
FIRST_WAITS_SECONDS = (1.0, 2.0, 4.0)  # before anything was sent: without a network, say so soon
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LONGEST_WAIT_SECONDS = 600.0  # the Hub counts requests in windows of five minutes
LONGEST_ANSWER = httpx.Timeout(600.0, connect=30.0)  # seconds; huggingface_hub would wait for ever
# 409: another operation holds the repository; 412: its head moved, and the next attempt looks at what is there.
TRANSIENT_STATUS = {408, 409, 412, 429}
# huggingface_hub puts RuntimeError around a failed LFS upload, and raises ValueError for an answer it cannot read and
# for large files that are refused; hf_xet raises ConnectionError.
HUB_ERRORS = (httpx.HTTPError, OSError, RuntimeError, ValueError)
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) ")

T = TypeVar("T")


def with_retries(step: Callable[[], T], emit: Emit, waits: Sequence[float] = WAITS_SECONDS) -> T:
    """Call ``step`` and return its result; after a transient error, wait and retry.

    Args:
        step: may be called several times.
        emit: gets a warning before each wait.
        waits: seconds before each further attempt; the Hub may ask for more.
    """
    for wait in waits:
        get_session().timeout = LONGEST_ANSWER
        try:
            return step()
        except HUB_ERRORS as error:
            seconds = max(wait, _retry_after(error))
            if not _is_transient(error) or seconds > LONGEST_WAIT_SECONDS:
                raise
            emit(Message(f"{_reason(error)}; trying again in {seconds:.0f} s", "warning"))
        time.sleep(seconds)
    return step()


@contextmanager
def hub_faults(what: str, advice: str) -> Iterator[None]:
    """Turn errors of the Hub and of the way there into one EnvironmentFault.

    Args:
        what: what was tried.
        advice: how the user goes on when the cause is gone.
    """
    try:
        yield
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{what}: {fault}. {advice}") from fault
    except HUB_ERRORS as error:
        raise EnvironmentFault(f"{what}: {_explain(error)}. {advice}") from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, if the Hub answered at all."""
    for each in _chain(error):
        if isinstance(each, errors.HfHubHTTPError | httpx.HTTPStatusError):
            return int(each.response.status_code)
    match = XET_STATUS.search(str(error))
    return int(match[1]) if match else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, ConnectionError):  # the network is switched off, or hf_xet, which tried for minutes, gave up
        return False
    code = _status(error)
    if code is not None:
        return code in TRANSIENT_STATUS or code >= 500
    return any(isinstance(each, httpx.TransportError | json.JSONDecodeError) for each in _chain(error))


def _retry_after(error: BaseException) -> float:
    """Return the seconds of Retry-After, or 0."""
    for each in _chain(error):
        if isinstance(each, errors.HfHubHTTPError):
            asked = each.response.headers.get("Retry-After", "")
            return float(asked) if asked.isdigit() else 0.0
    return 0.0


def _reason(error: BaseException) -> str:
    """Return what happened, in half a sentence without addresses."""
    code = _status(error)
    if code is None:
        links = list(_chain(error))
        lost = any(isinstance(each, httpx.TransportError | ConnectionError) for each in links)
        first = (str(links[-1]) or type(links[-1]).__name__).splitlines()[0]
        return f"{'the connection to the Hub failed' if lost else 'the upload stopped'} ({without_secrets(first)})"
    said = next((each.server_message for each in _chain(error) if isinstance(each, errors.HfHubHTTPError)), None)
    return f"the Hub answered {code}" + (f" ({without_secrets(said.splitlines()[0])})" if said else "")


def _explain(error: BaseException) -> str:
    """Return what happened and what to do."""
    match error:
        case errors.LocalTokenNotFoundError():
            return "there is no Hub token on this machine; type `hf auth login`, or set HF_TOKEN"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset it"
    match _status(error):
        case 401:
            return f"{_reason(error)}: the token is wrong or has expired; type `hf auth login`, or correct HF_TOKEN"
        case 403:
            return f"{_reason(error)}: the token may not write there; make one that may, or name a repository of yours"
        case 404:
            return f"{_reason(error)}: there is no such repository for this account; name one of yours"
    if isinstance(error, ConnectionError):
        return f"{_reason(error)}; check network and proxy, or set HF_HUB_DISABLE_XET=1 to upload without hf_xet"
    if isinstance(error, httpx.TransportError):
        return f"{_reason(error)}; check network, proxy and HF_ENDPOINT"
    return _reason(error)
