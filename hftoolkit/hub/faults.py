"""What can go wrong between here and the Hub: what passes by itself, and what to tell about the rest."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import httpx2  # the client inside huggingface_hub, whose errors come through
from huggingface_hub import errors

from hftoolkit.contracts import Emit, Message
from hftoolkit.errors import EnvironmentFault
from hftoolkit.sources import without_secrets

FIRST_WAITS_SECONDS = (1.0, 2.0, 4.0)  # before anything was sent: without a network, say so soon
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LONGEST_WAIT_SECONDS = 600.0  # the Hub counts requests in windows of five minutes
# 409: another operation holds the repository; 412: its head moved, and the next attempt looks at what is there.
PASSING = {408, 409, 412, 429}
# hf_xet raises RuntimeError; ValueError is an answer that huggingface_hub cannot read, or a refusal of large files.
HUB_ERRORS = (httpx2.HTTPError, OSError, RuntimeError, ValueError)

T = TypeVar("T")


def patiently(step: Callable[[], T], emit: Emit, waits: Sequence[float] = WAITS_SECONDS) -> T:
    """Return what ``step`` returns; after an error that passes by itself, wait and call it again.

    Args:
        step: may be called several times.
        emit: gets a warning before each wait.
        waits: seconds before each further attempt; the Hub may ask for more.
    """
    for wait in waits:
        try:
            return step()
        except HUB_ERRORS as error:
            seconds = max(wait, _asked_wait(error))
            if not _passes(error) or seconds > LONGEST_WAIT_SECONDS:
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
    answers = (each for each in _chain(error) if isinstance(each, errors.HfHubHTTPError | httpx2.HTTPStatusError))
    return next((int(answer.response.status_code) for answer in answers), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _passes(error: BaseException) -> bool:
    if isinstance(error, errors.LocalTokenNotFoundError | errors.OfflineModeIsEnabled):
        return False
    code = _status(error)
    if code is not None:
        return code in PASSING or code >= 500
    if any(isinstance(each, httpx2.TransportError) for each in _chain(error)):
        return True
    if any(isinstance(each, OSError) for each in _chain(error)):  # of this machine: a file that is gone
        return False
    return isinstance(error, RuntimeError | json.JSONDecodeError)


def _asked_wait(error: BaseException) -> float:
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
        root = next((each for each in _chain(error) if isinstance(each, httpx2.TransportError)), error)
        first = (str(root) or type(root).__name__).splitlines()[0]
        return f"the connection to the Hub failed ({without_secrets(first)})"
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
        case None:
            return f"{_reason(error)}; check network, proxy and HF_ENDPOINT"
        case _:
            return _reason(error)
