"""Downloads from the Hugging Face Hub: which files of a model or data set, and what its errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hftoolkit.data.sources.address import ADDRESS_FORMS, PYPI_FORM, without_secrets
from hftoolkit.data.sources.http_client import http_client
from hftoolkit.errors import DataError, EnvironmentFault

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes", "*.tiktoken", "*.tokenizer")
SAFETENSORS = ("*.safetensors",)
PICKLES = ("*pytorch_model*.bin", "*adapter_model*.bin")  # not *.bin: training_args.bin is a pickle too
FOREIGN_FOLDERS = ("onnx", "openvino", "coreml", "flax", "tf", "checkpoint-*")
FOREIGN_FILES = tuple(f"{parent}{name}/*" for name in FOREIGN_FOLDERS for parent in ("", "*/"))


def download_snapshot(address: str, repo: str, revision: str | None, repo_type: str) -> Path:
    """Download what is needed of a repository; return its folder, whose name is the commit.

    Args:
        address: as the recipe has it, for messages.
        repo: Hub id.
        revision: branch, tag or commit; None: the main branch.
        repo_type: ``model``: only files that transformers, timm and peft load; ``dataset``: all but scripts.

    Raises:
        DataError: there is no such repository or revision, it is gated, or a model has no weights.
        EnvironmentFault: the Hub cannot be reached, or the disk is full.
    """
    from huggingface_hub import snapshot_download

    with _hub_faults(address):
        if repo_type == "model":
            return _download_model(repo, revision)
        return Path(snapshot_download(repo, repo_type=repo_type, revision=revision, ignore_patterns=["*.py"]))


@contextmanager
def offline() -> Iterator[None]:
    """Let nothing inside ask the Hub: files that somebody else wrote may name others, and those are not fetched."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def find_commit(address: str, repo: str, revision: str | None, repo_type: str) -> str:
    """Return the commit that a branch or tag is at; where the Hub cannot be asked, of the last download.

    Arguments and errors are those of ``download_snapshot``.
    """
    from huggingface_hub import snapshot_download

    with _hub_faults(address):  # which names the commit in the folder, also offline; of the files it needs only one
        folder = snapshot_download(repo, repo_type=repo_type, revision=revision, allow_patterns=["config.json"])
    return Path(folder).name


def _download_model(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    def download(revision: str | None, weights: tuple[str, ...]) -> Path:
        patterns, ignored = [*MODEL_FILES, *weights], [*FOREIGN_FILES]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))

    folder = download(revision, SAFETENSORS)
    if not _has_any(folder, SAFETENSORS):
        folder = download(folder.name, PICKLES)  # the commit just fetched, should the branch move meanwhile
        if not _has_any(folder, PICKLES):
            raise DataError(f"the Hub model {repo!r} has no *.safetensors and no pytorch_model.bin; name another one")
    return folder


def _has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.rglob(pattern))


@contextmanager
def _hub_faults(address: str) -> Iterator[None]:
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(f"{address!r} is gated: ask for access on its Hub page, then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"the Hub has the repository of {address!r}, but not that revision") from error
    except (errors.RepositoryNotFoundError, errors.DisabledRepoError, errors.HFValidationError) as error:
        what = f"the Hub shows no repository {address!r} (`hf auth login` shows private ones), and no local path has"
        raise DataError(f"{what} that name; write {ADDRESS_FORMS}") from error
    except (http_client().HTTPError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet lost its connection
        reason = without_secrets((str(error) or type(error).__name__).splitlines()[0])
        hint = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "check network, proxy, HF_HOME and free space"
        what = f"cannot get {address!r} from the Hub, and no local path has that name: {reason}"
        raise EnvironmentFault(f"{what}; {hint}, or write a path that exists or {PYPI_FORM}") from error
