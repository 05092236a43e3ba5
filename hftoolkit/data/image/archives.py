"""Archives where images are expected: refused, with the line that unpacks them."""

import shlex
import zipfile
from pathlib import Path

from hftoolkit.data.image.files import IMAGE_ENDINGS, archive_ending
from hftoolkit.errors import DataError

# What arrays are kept in without a name that says which is what; .npz files have names.
ARRAY_ENDINGS = (".npy", ".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".tfrecord", ".tfrecords")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm")


def check_no_archive(path: Path, may_be_table: bool) -> None:
    """Raise DataError for an archive, a file of arrays or a video, with what to do instead.

    Args:
        path: of the source.
        may_be_table: whether a compressed table is expected; then only a zip archive of images is refused.
    """
    if not path.is_file():
        return
    ending, suffix = archive_ending(path), path.suffix.lower()
    if ending is not None and not (may_be_table and ending == ".zip" and not _holds_images(path)):
        folder = path.name[: -len(ending)]
        raise DataError(
            f"{path.name} is an archive, and images are read from folders; unpack it "
            f"({_command(path, ending, folder)}) and name the folder {folder}"
        )
    if suffix in ARRAY_ENDINGS:
        raise DataError(
            f"{path.name} is a file of arrays, which is not read; save it as .npz (numpy.savez(FILE, images=..., "
            "labels=...)), or write each image to CLASS/NUMBER.png with "
            "PIL.Image.fromarray(array).save(...), and name the folder of the classes"
        )
    if suffix in VIDEO_ENDINGS:
        raise DataError(f"{path.name} is a video; take frames out of it (ffmpeg -i {path.name} frames/%05d.png)")


def _command(path: Path, ending: str, folder: str) -> str:
    name, target = shlex.quote(str(path)), shlex.quote(folder)
    if ending == ".zip":
        return f"unzip {name} -d {target}"
    if ".t" in ending:
        return f"mkdir {target} && tar -xf {name} -C {target}"
    return f"7z x {name} -o{target}"


def _holds_images(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith(IMAGE_ENDINGS) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
