"""Where images may lie, and what is said where they lie otherwise. Nothing is decoded here but where pixels count."""

import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from doubles.rows import open_images
from hftoolkit.data.files import write_table
from hftoolkit.data.image.cache import Geometry, StoredImage, decode
from hftoolkit.data.image.layout import split_of, splits_among
from hftoolkit.data.image.named_files import find_named
from hftoolkit.data.image.rows import read_scored_images
from hftoolkit.data.image.sources import ImageTable, read_image_tables, read_told_image_tables
from hftoolkit.data.image.splits import load_image_splits, load_labelled_images
from hftoolkit.data.labels import LabelSet
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageClassification, ImageColumns, ImageData, Pixels
from hftoolkit.tasks.shared.image_inputs import image_inputs

pytestmark = pytest.mark.smoke

TASK = ImageClassification(kind="image-classification")
SMALL = Geometry(4, 4, 1.0, "bilinear")
BYTES = {}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))


def put(*places: str | Path, kind: str = "PNG") -> None:
    """Write a different picture at each place."""
    for place in map(Path, places):
        place.parent.mkdir(parents=True, exist_ok=True)
        level = (sum(os.fsencode(place)) * 37) % 256
        Image.new("RGB", (4, 4), (level, 255 - level, len(str(place)) % 256)).save(place, kind)


def put_classes(root: Path, classes: str, count: int = 2, ending: str = ".png") -> Path:
    put(*(root / name / f"{number}{ending}" for name in classes.split() for number in range(count)))
    return root


def section(source: Path | str = "x", **keys) -> ImageData:
    return ImageData.model_validate({"source": str(source), **keys})


def read(source: Path, **keys) -> dict[str, ImageTable]:
    return read_image_tables(source, section(source, **keys))


def classes_of(table: ImageTable) -> list[str]:
    return sorted(set(table.table.columns["folder"]))


def refusal(source: Path, **keys) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **keys)
    return str(caught.value)


# --- split folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("seg_train", "train"), ("train_set", "train"), ("TrainingSet", "train")),
        *(
            ("val2017", "validation"),
            ("images-val", "validation"),
            ("Validation Data", "validation"),
            ("dev", "validation"),
        ),
        *(
            ("test", "test"),
            ("PublicTest", "test"),
            ("testset", "test"),
            ("evaluation", "test"),
            ("seg_pred", "predict"),
        ),
        *(("train_station", None), ("test tube", None), ("evaluate me", None), ("contest", None), ("valley", None)),
        *(("cat", None), ("train_test", None), ("", None)),
    ],
)
def test_names_of_splits_are_told_from_those_of_classes(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_words_that_two_splits_share_belong_to_the_data() -> None:
    assert splits_among(["cats_train", "cats_test", "readme"]) == {"cats_train": "train", "cats_test": "test"}
    assert splits_among(["train_station", "bus_station"]) == {}
    assert splits_among(["intel_train", "test", "tower"]) == {"intel_train": "train", "test": "test"}


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        ("train val test", "{train: train, validation: val, test: test}"),
        ("train_set test_set", "{train: train_set, validation: 0.1, test: test_set}"),
        (
            "seg_train/seg_train seg_test/seg_test",
            "{train: seg_train/seg_train, validation: 0.1, test: seg_test/seg_test}",
        ),
        ("birds/train birds/valid", "{train: birds/train, validation: birds/valid, test: 0.1}"),
        ("a/b/Training a/b/Testing", "{train: a/b/Training, validation: 0.1, test: a/b/Testing}"),
    ],
)
def test_split_folders_are_never_classes_and_what_to_write_works(folders: str, advice: str, tmp_path: Path) -> None:
    for folder in folders.split():
        put_classes(tmp_path / "data" / folder, "cat dog")
    message = refusal(tmp_path / "data")
    assert f"write data.split: {advice}" in message
    split = dict(part.split(": ") for part in advice[1:-1].split(", "))
    split = {name: float(value) if value == "0.1" else value for name, value in split.items()}
    tables = read(tmp_path / "data", split=split)
    assert set(tables) == {name for name, value in split.items() if isinstance(value, str)}
    assert all(classes_of(table) == ["cat", "dog"] and len(table.images) == 4 for table in tables.values())
    assert [table.warnings for table in tables.values()] == [[]] * len(tables)


def test_splits_inside_class_folders_are_found_and_read(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        put_classes(tmp_path / "pets" / name, "train test")
    assert "write data.split: {train: '*/train', validation: 0.1, test: '*/test'}" in refusal(tmp_path / "pets")
    tables = read(tmp_path / "pets", split={"train": "*/train", "test": "*/test"})
    assert classes_of(tables["train"]) == classes_of(tables["test"]) == ["cat", "dog"]
    assert [image.name for image in tables["test"].images][:2] == ["cat/test/0.png", "cat/test/1.png"]


def test_folders_beside_splits_are_left_out_and_told(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        put_classes(tmp_path / split, "cat dog")
    put(tmp_path / "docs" / "figure.png", tmp_path / "seg_pred" / "seg_pred" / "1.png", tmp_path / "__MACOSX" / "x.png")
    message = refusal(tmp_path)
    assert "the split folders seg_pred, test, train, val beside docs; write data.split: {train: train, " in message
    assert "nothing can be measured on seg_pred: that is for hftoolkit predict" in message
    tables = read(tmp_path, split={"train": "train", "validation": "val", "test": "test"})
    told = "2 of 14 images are in no split that data.split names: docs 1, seg_pred 1"
    assert tables["train"].warnings == [told] and tables["test"].warnings == []


def test_a_test_folder_without_classes_is_for_prediction(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", "cat dog")
    put(tmp_path / "test" / "1.png", tmp_path / "test" / "2.png")
    message = refusal(tmp_path)
    assert "{train: train, validation: 0.1, test: 0.1}" in message and "hftoolkit predict" in message
    message = refusal(tmp_path, split={"train": "train", "test": "test"})
    assert "test holds 2 images and no folder a class" in message and "write data.split.test: 0.1" in message
    put_classes(tmp_path / "flat", "train test")
    assert "no class folders to train on" in refusal(tmp_path / "flat")


def test_where_no_folder_is_a_class_the_table_is_named(tmp_path: Path) -> None:
    put_classes(tmp_path, "images")
    table_of(tmp_path / "train.csv", images_at(["0", "1"]))
    message = refusal(tmp_path)
    assert "holds images in one folder, images, and not in a folder for each class" in message
    assert "or let the table train.csv name them with data.columns: {image: COLUMN, label: COLUMN}" in message
    put_classes(tmp_path / "loose" / "..", "loose")
    assert "or name a table of file names" in refusal(tmp_path / "loose")
    put_classes(tmp_path / "kaggle", "train test")
    table_of(tmp_path / "kaggle" / "train.csv", images_at(["0", "1"]))
    assert "no class folders to train on" in refusal(tmp_path / "kaggle")
    assert "let the table train.csv name them" in refusal(tmp_path / "kaggle")


def test_classes_may_be_called_like_a_split(tmp_path: Path) -> None:
    put_classes(tmp_path, "bus car train")
    assert classes_of(read(tmp_path)["train"]) == ["bus", "car", "train"]
    put_classes(tmp_path, "test")
    assert "split folders" in refusal(tmp_path)
    names = {name: name for name in ("bus", "car", "train", "test")}
    task = ImageClassification(kind="image-classification", labels=names)
    data = section(tmp_path, split={"validation": 0.3, "test": 0.3})
    assert load_image_splits(tmp_path, data, task, SMALL).labels.names == ("bus", "car", "train", "test")


def test_a_split_that_lies_deeper_is_named(tmp_path: Path) -> None:
    put_classes(tmp_path / "a_train" / "inner", "cat dog")
    put(tmp_path / "a_test" / "cat" / "close" / "1.png")  # a class of train, though it holds one folder
    message = refusal(tmp_path, split={"train": "a_train", "test": "a_test"})
    assert "write data.split: {train: a_train/inner, validation: 0.1, test: a_test}" in message
    tables = read(tmp_path, split={"train": "a_train/inner/", "test": "./a_test"})
    assert classes_of(tables["test"]) == ["cat"] and "cat/close" in tables["test"].warnings[0]


@pytest.mark.parametrize("inside", ["PetImages", "archive/PetImages"])
def test_a_wrapped_root_is_named(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_classes(tmp_path / "data" / inside, "Cat Dog")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"\(Cat, Dog\); set data.source: ./data/{inside}$"):
        read_image_tables(tmp_path / "data", section("./data"))
    with pytest.raises(DataError, match=rf"set data.split.train: {inside}$"):  # a Hub id takes no folder
        read_image_tables(tmp_path / "data", section("owner/pets"))
    assert classes_of(read(tmp_path / "data", split={"train": inside})["train"]) == ["Cat", "Dog"]


# --- classes and files that would be lost ----------------------------------------------------------------------------


def test_jpegs_of_any_ending_and_none_are_images(tmp_path: Path) -> None:
    names = ("a.jfif", "b.jpe", "c.JPEG", "d", "e.jpg?w=200", "f.pjpeg", "g.png_large")
    put(*(tmp_path / folder / name for folder in ("x", "y") for name in names), kind="JPEG")
    (tmp_path / "x" / "notes").write_text("BM is no bitmap")
    table = read(tmp_path)["train"]
    assert len(table.images) == 14 and decode(table.images[3]).size == (4, 4)
    assert table.warnings == [f"files of {tmp_path.name} that are no images and are left out: 1 of 15 (notes 1)"]


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat dog")
    (tmp_path / "fish").mkdir()
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "1.txt").write_text("x")
    assert "folders without images are no classes: bird (.txt 1), fish (empty)" in read(tmp_path)["train"].warnings


def test_pictures_of_other_formats_are_bad_rows_and_not_lost(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat dog", 10)
    (tmp_path / "emu").mkdir()
    for name in ("0.heic", "1", "2.ppm"):
        (tmp_path / "emu" / name).write_bytes(b"P6" if name == "2.ppm" else b"\0\0\0\x18ftypheic" + bytes(20))
    (tmp_path / "emu" / "3.png").symlink_to("nowhere.png")
    (tmp_path / "emu" / "4.png").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError) as caught:
        load_image_splits(tmp_path, section(tmp_path), TASK, SMALL)
    lines = str(caught.value)
    assert (
        "GIF, TIFF: 3 (rows 21 (emu/1), 22 (emu/0.heic)" in lines and "file is missing: 1 (row 24 (emu/3.png))" in lines
    )
    assert "git lfs pull): 1 (row 25 (emu/4.png))" in lines
    assert len(open_images(tmp_path, None, None)) == 25


def tiff_of_bands(bands: int) -> bytes:
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 200, 277: bands, 278: 4, 279: 16 * bands}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries).ljust(200, b"\0") + bytes(16 * bands)


def test_a_picture_of_many_bands_says_how_many(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat dog", 10)
    for number in (1, 2):
        (tmp_path / "cat" / f"{number}.tif").write_bytes(tiff_of_bands(13))
    (tmp_path / "cat" / "3.tif").write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(DataError) as caught:
        load_image_splits(tmp_path, section(tmp_path), TASK, SMALL)
    assert "image has 13 bands, and models see 3; save the three that matter as a picture: 2 (" in str(caught.value)
    assert ": 1 (row 7 (cat/3.tif))" in str(caught.value)
    inputs = image_inputs(tmp_path / "cat", section(tmp_path), SMALL, lambda pixels, name: name)
    assert "13 bands" in inputs.read(0, 5)[2].reason


def test_folders_inside_class_folders_are_told(tmp_path: Path) -> None:
    put_classes(tmp_path / "animals", "cat dog")
    put_classes(tmp_path / "plants", "fern oak")
    assert "8 of 8 images of" in read(tmp_path)["train"].warnings[0]
    assert "(animals/cat, ...); the outermost folder is their class" in read(tmp_path)["train"].warnings[0]


def test_names_that_are_not_utf8_are_shown_and_read(tmp_path: Path) -> None:
    for folder in (b"caf\xe9", b"tea"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + folder)
        for number in range(10):
            put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder + b"/\xe9%d.png" % number)))
    splits = load_image_splits(tmp_path, section(tmp_path), TASK, SMALL)
    assert splits.labels.names == ("caf\\xe9", "tea")
    assert "caf\\xe9/\\xe93.png" in [name for names in splits.names.values() for name in names]
    names = [image.name for image in open_images(tmp_path, None, None)]
    assert len("".join(names).encode()) > 0 and names[0] == "caf\\xe9/\\xe90.png"


# --- tables that name images -----------------------------------------------------------------------------------------


def table_of(place: Path, rows, header: str = "image,label") -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return place


def images_at(names: list[str]) -> list[tuple[str, str]]:
    return [(name, "cat" if place % 2 else "dog") for place, name in enumerate(names)]


def found(table: ImageTable, root: Path) -> list[str]:
    return [Path(image.content).relative_to(root).as_posix() for image in table.images]


@pytest.mark.parametrize(
    ("written", "warned"),
    [
        ("im/{}.png", None),
        ("{}", "lack the ending: '0' is taken for im/0.png"),
        ("{}.png", "are not paths from the table: '0.png' is taken for im/0.png"),
        ("im\\{}.png", "have backslashes: 'im\\\\0.png' is taken for im/0.png"),
        ("C:\\Users\\ada\\im\\{}.PNG", "have backslashes"),
        ("/home/ada/pets/im/{}.png", "are not paths from the table"),
        ("./im/{}.png", None),
    ],
)
def test_images_are_found_by_names_of_many_kinds(written: str, warned: str | None, tmp_path: Path) -> None:
    put(*(tmp_path / "im" / f"{number}.png" for number in range(4)))
    table_of(tmp_path / "list.csv", images_at([written.format(number) for number in range(4)]))
    for source in (tmp_path / "list.csv", tmp_path):
        table = read(source, columns={})["train"]
        assert found(table, tmp_path) == [f"im/{number}.png" for number in range(4)] and not table.bad
        assert len(table.warnings) == (warned is not None) and (warned or "") in "".join(table.warnings)


def test_numbers_of_a_parquet_file_are_names(tmp_path: Path) -> None:
    put(*(tmp_path / "photos" / f"{number}.jpg" for number in range(4)), kind="JPEG")
    write_table({"image": [0, 1, 2, 3], "label": ["a", "b"] * 2}, tmp_path / "list.parquet")
    assert found(read(tmp_path / "list.parquet", columns={})["train"], tmp_path)[3] == "photos/3.jpg"


def test_a_name_that_fits_two_files_is_that_of_the_same_split_or_a_bad_row(tmp_path: Path) -> None:
    put(*(tmp_path / folder / f"{number}.png" for folder in ("train_images", "test_images") for number in range(2)))
    names = find_named(["0", "1"], [tmp_path], "train.csv")
    assert [path.parent.name for path in names.paths.values()] == ["train_images"] * 2
    table_of(tmp_path / "list.csv", images_at(["0", "1"]))
    bad = read(tmp_path / "list.csv", columns={})["train"].bad
    assert {problem.reason for problem in bad.values()} == {"image name fits several files"} and len(bad) == 2


def test_a_missing_file_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png", tmp_path / "cat" / "2.png", tmp_path / "dog" / "1.png")
    assert find_named(["cat/1.png", "dog/2.png"], [tmp_path], "a.csv").paths.keys() == {"cat/1.png"}
    assert find_named(["cat/1.png", "2.png"], [tmp_path], "a.csv").paths.keys() == {"cat/1.png"}
    mixed = find_named(["cat/1.png", "cat\\2.png"], [tmp_path], "a.csv")
    assert mixed.paths["cat\\2.png"] == tmp_path / "cat" / "2.png" and "1 names of images have" in mixed.warnings[0]
    assert find_named(["1", "x/dog/2"], [tmp_path / "cat"], "a.csv").paths.keys() == {"1", "x/dog/2"}
    assert find_named(["x/dog/2", "cat/2"], [tmp_path], "a.csv").paths == {"cat/2": tmp_path / "cat" / "2.png"}


def test_images_are_found_beside_the_folder_of_their_table(tmp_path: Path) -> None:
    put(*(tmp_path / "set" / "images" / f"{number}.png" for number in range(2)))
    for names in (["0", "1"], ["images/0.png", "images/1.png"]):
        table_of(tmp_path / "set" / "labels" / "train.csv", images_at(names))
        for source in (tmp_path / "set" / "labels" / "train.csv", tmp_path / "set" / "labels", tmp_path / "set"):
            table = read(source, columns={})["train"]
            assert found(table, tmp_path / "set") == ["images/0.png", "images/1.png"]


def test_names_that_are_nowhere_are_told_with_one_that_is(tmp_path: Path) -> None:
    put(tmp_path / "train_images" / "img000.png")
    table_of(tmp_path / "train.csv", images_at(["photo_1", "photo_2"]))
    message = refusal(tmp_path / "train.csv", columns={})
    assert "'photo_1' was looked for in" in message and "like train_images/img000.png" in message
    table_of(tmp_path / "alone" / "train.csv", images_at(["photo_1"]))
    assert "which hold no images at all" in refusal(tmp_path / "alone" / "train.csv", columns={})


def test_cells_that_are_no_names_are_bad_rows_of_readable_length(tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    cells = ["1.png", "https://example.org/1.png", "x" * 5000, "a" * 300 + "/1.png", " ".join(["7"] * 2000), ""]
    table_of(tmp_path / "a.csv", images_at(cells))
    bad = read(tmp_path / "a.csv", columns={})["train"].bad
    reasons = [bad[number].reason for number in range(2, 7)]
    assert ["web address" in reasons[0], "too long" in reasons[1], "too long" in reasons[2]] == [True] * 3
    assert "no gray square" in reasons[3] and reasons[4] == "image is missing"


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_pixels_in_one_cell_are_images(form: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48 * 48))
    usage = ["Training", "Training", "Training", "Training", "PublicTest", "PrivateTest"]
    rows = [(place % 3, form.format(" ".join(map(str, row))), usage[place]) for place, row in enumerate(pixels)]
    place = table_of(tmp_path / "fer.csv", rows, "emotion,pixels,Usage")
    columns = {"image": "pixels", "label": "emotion"}
    _, told, notes = read_told_image_tables(place, section(place, columns=columns))
    assert told.split.column == "Usage" and "column 'Usage' of fer.csv says which row is for" in notes[0]
    tables = read(
        place, columns=columns, split={"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
    )
    assert [len(table.images) for table in tables.values()] == [4, 1, 1]
    assert (tables["test"].images[0].content.reshape(-1) == pixels[5]).all()
    assert tables["test"].table.columns["emotion"] == ["2"] and "48 x 48" in tables["train"].warnings[0]
    assert len({table.table.source for table in tables.values()}) == 3
    some = read(place, columns=columns, split={"train": "Training"})["train"]
    assert some.warnings[-1] == "2 of 6 rows of fer.csv are in no split that data.split names"
    with pytest.raises(DataError, match="no columns beside image and label hold 'train'"):
        read(place, columns=columns, split={"train": "train"})


def test_tables_of_splits_lie_beside_the_images(tmp_path: Path) -> None:
    put(*(tmp_path / "im" / f"{number}.png" for number in range(9)))
    for name, numbers in (("train", range(4)), ("val", (4, 5)), ("test", (6, 7, 8))):
        table_of(tmp_path / f"{name}.csv", images_at([f"im/{number}.png" for number in numbers]))
    assert "write data.split: {train: train, validation: val, test: test}" in refusal(tmp_path, columns={})
    tables = read(tmp_path, columns={}, split={"train": "train", "validation": "val", "test": "test.csv"})
    assert [found(table, tmp_path)[0] for table in tables.values()] == ["im/0.png", "im/4.png", "im/6.png"]
    table_of(tmp_path / "test.csv", [(f"im/{number}.png",) for number in range(6, 9)], "image")
    assert "{train: train, validation: val, test: 0.1}" in refusal(tmp_path, columns={})
    (tmp_path / "val.csv").rename(tmp_path / "sample_submission.csv")
    assert refusal(tmp_path, columns={}).endswith(f"name one, like data.source: {tmp_path}/train.csv")
    assert "0 tables for the split 'valid', not one" in refusal(tmp_path, columns={}, split={"train": "valid"})


def test_a_folder_of_images_without_a_table_says_so(tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    assert "without a table, and data.columns is for tables" in refusal(tmp_path, columns={})


# --- archives and arrays ---------------------------------------------------------------------------------------------


def test_archives_are_named_with_the_command_that_unpacks_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "my photos.zip", "w") as archive:
        archive.writestr("cat/1.png", b"x")
    for name in ("pets.tar.gz", "pets.tgz", "pets.7z"):
        (tmp_path / name).write_bytes(b"x")
    assert "unzip" in refusal(tmp_path / "my photos.zip") and "-d 'my photos'" in refusal(tmp_path / "my photos.zip")
    assert "unzip" in refusal(tmp_path / "my photos.zip", columns={})
    assert f"mkdir pets && tar -xf {tmp_path}/pets.tar.gz -C pets" in refusal(tmp_path / "pets.tar.gz")
    assert "tar -xf" in refusal(tmp_path / "pets.tgz", columns={}) and "7z x" in refusal(tmp_path / "pets.7z")
    assert "archives: my photos.zip, pets.7z" in refusal(tmp_path)
    with pytest.raises(DataError, match="unzip"):
        open_images(tmp_path / "my photos.zip", None, None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "x.npy").write_bytes(b"x")
    assert "ffmpeg" in refusal(tmp_path / "clip.mp4") and "numpy.savez" in refusal(tmp_path / "x.npy")


def test_arrays_with_names_are_read_by_split(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(9)[:, None] % 2
    one = tmp_path / "one.npz"
    np.savez(one, images=pixels, labels=labels)
    assert read(one)["train"].table.columns["label"] == [0, 1] * 4 + [0]
    several = tmp_path / "med.npz"
    np.savez(several, train_images=pixels[:6], train_labels=labels[:6], x_test=pixels[6:, ..., 0], y_test=labels[6:, 0])
    assert "write data.split: {train: train, validation: 0.1, test: test}" in refusal(several)
    tables = read(several, split={"train": "train", "test": "test"})
    assert (tables["test"].images[1].content == pixels[7, ..., 0]).all() and len(tables["train"].images) == 6
    assert tables["test"].table.columns["label"] == [0, 1, 0]
    assert len(open_images(several, None, None)) == 3
    assert "has no split 'val'" in refusal(several, split={"train": "train", "validation": "val"})
    np.savez(one, images=pixels / 255)
    assert "is float64" in refusal(one) and "uint8" in refusal(one)
    np.savez(one, a=pixels, b=pixels)
    assert "one array of images" in refusal(one)
    one.write_bytes(b"no zip")
    assert "cannot read one.npz" in refusal(one)


# --- measuring what another source holds -----------------------------------------------------------------------------

PETS = LabelSet.from_names(["cat", "dog"], False)


def measured(path: Path, **keys) -> list[str]:
    found = load_labelled_images(path, section(**keys), TASK, SMALL, PETS)
    assert len(found.names) == len(found.targets) and not found.bad
    return [PETS.names[target] for target in found.targets]


def test_the_folder_to_measure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("a_train", "test"):
        put_classes(tmp_path / "other" / split, "cat dog")
    put_classes(tmp_path / "more" / "inner", "cat dog", 1)
    with pytest.raises(DataError, match=r"name one: --data other/test or --data other/a_train$"):
        measured(tmp_path / "other")
    with pytest.raises(DataError, match=r"--data more/inner$"):
        measured(tmp_path / "more")
    assert measured(tmp_path / "other" / "test") == ["cat", "cat", "dog", "dog"]
    put(tmp_path / "one" / "cat" / "deep" / "1.png")
    assert measured(tmp_path / "one") == ["cat"]
    put(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match="no folder a class, by which they could be measured"):
        measured(tmp_path / "flat")


def test_a_run_of_any_source_is_measured_on_any_other(tmp_path: Path) -> None:
    put_classes(tmp_path / "folders", "cat dog", 1)
    table_of(tmp_path / "folders" / "notes.csv", [("x", "y")])  # beside class folders, a table is not what is measured
    put(tmp_path / "1.png")
    names = table_of(tmp_path / "names.csv", [("1.png", "dog")])
    grid = table_of(tmp_path / "grid.csv", [("cat", *range(16))], ",".join(["label", *(f"p{i}" for i in range(16))]))
    pixels = {"shape": [4, 4], "label": "first", "header": True}
    for keys in ({}, {"pixels": pixels}, {"columns": {}}):
        assert measured(tmp_path / "folders", **keys) == ["cat", "dog"]
        assert measured(names, **keys) == ["dog"]
    for keys in ({}, {"pixels": pixels}):
        assert measured(grid, **keys) == ["cat"]
    renamed = table_of(tmp_path / "renamed.csv", [("1.png", "dog")], "file,kind")
    with pytest.raises(DataError, match=r"renamed.csv has no columns 'image' and 'label'"):
        measured(renamed)
    assert measured(renamed, columns={"image": "file", "label": "kind"}) == ["dog"]
    assert len(open_images(grid, None, None)) == 1 and len(open_images(names, None, Pixels(**pixels))) == 1
    with pytest.raises(DataError, match=r"data.pixels: \{shape: \[4, 4\], label: first, header: true\}"):
        read(grid)


def test_folders_of_numbers_are_measured_by_their_number(tmp_path: Path) -> None:
    put_classes(tmp_path / "ages", "20 30", 1)
    assert [row.target for row in read_scored_images(tmp_path / "ages", section(), SMALL).rows] == [20.0, 30.0]
    put_classes(tmp_path / "split" / "train", "20 30", 1)
    put_classes(tmp_path / "split" / "test", "20 30", 1)
    with pytest.raises(DataError, match=r"--data .*split/test"):
        read_scored_images(tmp_path / "split", section(), SMALL)


# --- several labels --------------------------------------------------------------------------------------------------


def several(**keys) -> ImageClassification:
    return ImageClassification(kind="image-classification", multi_label=True, **keys)


def test_several_labels_of_an_image_are_read_from_one_column_or_from_flags(tmp_path: Path) -> None:
    put(*(tmp_path / f"{number}.png" for number in range(12)))
    tags = ["clear primary", "clear", "", "haze primary"] * 3
    table = table_of(tmp_path / "tags.csv", [(f"{place}.png", tag) for place, tag in enumerate(tags)])
    data = section(columns={}, split={"validation": 0.2, "test": 0.2})
    splits = load_image_splits(table, data, several(label_separator=" "), SMALL)
    assert splits.labels.names == ("clear", "haze", "primary") and splits.labels.multi_label
    for split, numbers in splits.row_numbers.items():
        for number, target in zip(numbers, splits.targets[split], strict=True):
            assert target.tolist() == [float(name in tags[number - 1].split()) for name in splits.labels.names]
    rows = [(f"{place}.png", int("clear" in tag), int("haze" in tag)) for place, tag in enumerate(tags)]
    flags = table_of(tmp_path / "flags.csv", rows, "image,clear,haze")
    data = section(columns={"label": ["clear", "haze"]}, split={"validation": 0.2, "test": 0.2})
    splits = load_image_splits(flags, data, several(), SMALL)
    assert splits.labels.names == ("clear", "haze")
    assert sum(target.sum() for target in splits.targets.values()) == 9


def test_labels_that_another_separator_divides_are_told(tmp_path: Path) -> None:
    put(*(tmp_path / f"{number}.png" for number in range(12)))
    tags = ["clear primary", "clear", "cloudy primary", "cloudy"] * 3
    table = table_of(tmp_path / "tags.csv", [(f"{place}.png", tag) for place, tag in enumerate(tags)])
    (hint,) = [
        text
        for text in load_image_splits(table, section(columns={}), several(), SMALL).summary["warnings"]
        if "separator" in text
    ]
    assert "set task.label_separator: ' '" in hint


def test_images_of_a_table_need_no_label_to_be_predicted(tmp_path: Path) -> None:
    put(tmp_path / "im" / "7.png")
    table = table_of(tmp_path / "test.csv", [("7",)], "id")
    opened = open_images(table, ImageColumns(image="id"), None)
    assert opened == [StoredImage("7", tmp_path / "im" / "7.png")]
