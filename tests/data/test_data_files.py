import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from doubles.rows import clean_rows
from hftoolkit.data.files import write_table
from hftoolkit.data.tables import DataTable, read_table, require_columns
from hftoolkit.errors import DataError
from hftoolkit.recipe import TextData

pytestmark = pytest.mark.smoke

DATA = TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}})
SUFFIX_OF = {gzip: ".gz", bz2: ".bz2", lzma: ".xz"}


def write_rows(path: Path, rows, header=("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


COLUMNS = {
    "text": ["plain", 'quo"ted, and comma', "two\nlines", "NA", "null", "None", "", "caf\u00e9"],
    "label": ["1", "2", "1", "NA", "x", "y", "", "z"],
}
ROWS = [dict(zip(COLUMNS, cells, strict=True)) for cells in zip(*COLUMNS.values(), strict=True)]


def as_separated(separator: str) -> bytes:
    lines = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row.values()) for row in ROWS]
    return "\r\n".join([separator.join(COLUMNS), *lines, ""]).encode()


@pytest.mark.parametrize("compress", [None, gzip, bz2, lzma])
@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".csv", as_separated(",")),
        (".TSV", as_separated("\t")),
        (".json", json.dumps(ROWS).encode()),
        (".json", "\n".join(map(json.dumps, ROWS)).encode()),
        (".jsonl", "\n\n".join(map(json.dumps, ROWS)).encode()),
        (".ndjson", b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, ROWS)).encode()),
    ],
)
def test_text_formats_give_every_cell_verbatim(tmp_path, ending, content, compress):
    path = tmp_path / ("table" + ending + SUFFIX_OF.get(compress, ""))
    path.write_bytes(compress.compress(content) if compress else content)
    table = read_table(path)
    assert (table.columns, table.num_rows, table.files) == (COLUMNS, 8, (path.name,))


@pytest.mark.parametrize(
    "name", ["t.parquet", "t.parquet.brotli", "t.parquet.gzip", "t.arrow", "t.stream.arrow", "t.feather"]
)
def test_arrow_formats_keep_types_and_missing_values(tmp_path, name):
    columns = {"text": ["a", None, "NA"], "label": [1, 2, None], "score": [0.5, 1.0, None], "tags": [["x"], [], None]}
    table, path = pa.table(columns), tmp_path / name
    if ".parquet" in name:
        codec = name.partition("parquet.")[2] or "snappy"
        pa.parquet.write_table(table, path, compression=codec)
    elif name == "t.feather":
        pa.feather.write_feather(table, path)
    else:
        new = pa.ipc.new_stream if "stream" in name else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read_table(path).columns == columns


def test_what_is_written_as_parquet_is_read_back(tmp_path):
    write_table({"a": [1, 2], "b": ("x", None)}, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").columns == {"a": [1, 2], "b": ["x", None]}


def test_column_names_lose_blanks_and_byte_order_marks(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbftext , label,\nhi,1,2\n")
    assert read_table(tmp_path / "t.csv").columns == {"text": ["hi"], "label": ["1"], "column 3": ["2"]}


def test_a_cell_may_be_longer_than_the_csv_module_allows_and_its_limit_is_restored(tmp_path):
    before = csv.field_size_limit()
    write_rows(tmp_path / "t.csv", [("x" * 200_000, "1")])
    assert len(read_table(tmp_path / "t.csv").columns["text"][0]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b"text,label\n", "t.csv has no rows"),
        ("t.csv", b"\n\n", "t.csv has no rows"),
        ("t.json", b"[]", "t.json has no rows"),
        (
            "t.csv",
            b'text,label\n"two\nlines",1\na,2\nb\n',
            "t.csv, row 3 (line 5) has 1 cells, but there are 2 columns",
        ),
        ("t.csv", b"text,label\na,1,extra\n", "row 1 (line 2) has 3 cells"),
        ("t.csv", b'text,label\na,1\n"never closed,2\nb,1\n', "row 2 (line 4) is not valid CSV"),
        ("t.csv", b"text,label\na,1\ncaf\xe9,2\n", "not UTF-8 (byte 0xe9 in line 3)"),
        ("t.jsonl", b'{"text": "a"}\n\n{"text": }\n', "t.jsonl, row 2 (line 3) is not valid JSON"),
        ("t.jsonl", b'{"text": "a"}\n[1]\n', "t.jsonl, row 2 is not an object"),
        ("t.json", b'[{"text": "a"},]', "t.json is not valid JSON"),
        ("t.parquet", b"PAR1 but not really", "cannot read t.parquet as parquet"),
        ("t.arrow", b"nothing of the kind", "cannot read t.arrow as arrow"),
        ("t.csv.gz", b"not gzip", "cannot read t.csv.gz"),
        ("t.csv.gz", gzip.compress(b"text,label\n", mtime=0)[:-9], "cannot read t.csv.gz"),
        (
            "t.xyz",
            b"x",
            "known: .csv, .tsv, .tab, .psv, .txt, .json, .jsonl, .ndjson, .parquet, .arrow, .feather",
        ),
        ("t.ods", b"x", "t.ods is a spreadsheet of a kind that is not read; save it as CSV"),
        ("t.tar.gz", b"x", "t.tar.gz is an archive; unpack it"),
        ("t", b"x", "cannot tell the format of t "),
        ("t.py", b"import os", "scripts are not run"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert message in str(caught.value)


def test_missing_paths_and_splits_of_single_files_are_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "absent.csv")
    path = write_rows(tmp_path / "t.csv", [("x", "a")])
    with pytest.raises(DataError, match=r"single file and has no 'train'; leave out data\.split\.train"):
        read_table(path, split="train")


def test_a_missing_column_is_told_with_the_closest_name_and_the_key_to_edit():
    table = DataTable({"Review Text": ["x"], "Rating": [1]}, 1)
    require_columns(table, ["Rating"], "data.columns.label")
    with pytest.raises(DataError) as caught:
        require_columns(table, ["review text", "zzz"], "data.columns.text")
    message = str(caught.value)
    assert "'review text' (did you mean 'Review Text'?), 'zzz'; it has: 'Review Text', 'Rating'" in message
    assert message.endswith("Edit data.columns.text")


# Reading folders


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "test.csv"),
        ("data/train-00000-of-00001.csv", "data/test-00000-of-00001.csv"),
        ("train/rows.csv", "test/rows.csv"),
    ],
)
def test_given_splits_are_found_by_file_or_folder_name(tmp_path, names, monkeypatch):
    for name, label in zip(names, ("a", "b"), strict=True):
        write_rows(tmp_path / name, [("x", label)])
    assert read_table(tmp_path, split="train").columns["label"] == ["a"]
    monkeypatch.chdir(tmp_path.parent)
    assert read_table(Path(tmp_path.name), split="test").files == (names[1],)
    everything = read_table(tmp_path)
    assert (everything.columns["label"], everything.joined_splits) == (["a", "b"], ("train", "test"))
    with pytest.raises(DataError, match="has no split 'valid'; it has: train, test"):
        read_table(tmp_path, split="valid")


def test_splits_with_names_of_ones_own_and_shards_are_read_in_order(tmp_path):
    write_rows(tmp_path / "train.csv", [("x", "a")])
    for shard in range(3):
        write_rows(tmp_path / f"gold-{shard}.csv", [(f"shard {shard}", "a")])
    write_rows(tmp_path / "golden.csv", [("not this", "a")])
    assert read_table(tmp_path, split="gold").columns["text"] == ["shard 0", "shard 1", "shard 2"]


def test_a_hub_snapshot_of_links_with_a_card_is_read_by_its_card(tmp_path):
    card = """---
configs:
- config_name: main
  data_files: [{split: fit, path: a.csv}, {split: hold, path: b.csv}]
  sep: ";"
- config_name: other
  data_files: c.csv
dataset_info:
- config_name: main
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': good, '1': bad}}}
---
"""
    files = {"README.md": card, "a.csv": "text;label\nx, y;1\nz;-1\n", "b.csv": "text;label\nw;0\n", "c.csv": "q\n1\n"}
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for name, content in files.items():
        (tmp_path / "blobs" / f"{name}0123").write_text(content)
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / f"{name}0123")
    table = read_table(tmp_path / "snapshot", split="fit", subset="main")
    assert table.columns == {"text": ["x, y", "z"], "label": ["bad", None]}
    assert table.class_names == {"label": ["good", "bad"]}
    assert read_table(tmp_path / "snapshot", subset="other").columns == {"q": ["1"]}
    with pytest.raises(DataError, match=r"'nope' not found.*Set data.subset"):
        read_table(tmp_path / "snapshot", subset="nope")


def test_class_label_codes_become_names_in_parquet_and_saved_data_sets(tmp_path):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["z", "a"]),
            "tags": datasets.List(datasets.ClassLabel(names=["u", "v"])),
        }
    )
    columns = {"text": ["1", "2", "3"], "label": [0, 1, -1], "tags": [[1, 0], [], None]}
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.to_parquet(tmp_path / "t.parquet")
    datasets.DatasetDict({"train": saved.select([0, 1]), "test": saved.select([2])}).save_to_disk(tmp_path / "saved")
    table = read_table(tmp_path / "t.parquet")
    assert (table.columns["label"], table.columns["tags"]) == (["z", "a", None], [["v", "u"], [], None])
    assert table.class_names == {"label": ["z", "a"], "tags": ["u", "v"]}
    assert read_table(tmp_path / "saved", split="train").columns["label"] == ["z", "a"]
    saved.select([1]).save_to_disk(tmp_path / "one")
    assert read_table(tmp_path / "one").columns["label"] == ["a"]
    rows = clean_rows(read_table(tmp_path / "saved", split="train"), DATA, multi_label=False)
    assert rows.labels.names == ("z", "a")
    assert rows.targets.tolist() == [0, 1]


def test_a_table_that_is_called_state_json_is_a_table(tmp_path):
    (tmp_path / "state.json").write_text('[{"text": "Iowa"}]')
    assert read_table(tmp_path).columns == {"text": ["Iowa"]}


@pytest.mark.parametrize("mapping", [{0: "no", 1: "yes"}, {"z": "no", "a": "yes"}])
def test_recipe_labels_name_coded_labels_by_code_or_by_name(mapping):
    table = DataTable({"text": ["t", "u", "v"], "label": ["z", "a", "a"]}, 3, {"label": ["z", "a"]})
    rows = clean_rows(table, DATA, multi_label=False, mapping=mapping)
    assert (rows.labels.names, rows.targets.tolist()) == (("no", "yes"), [0, 1, 1])


def test_codes_beyond_the_names_and_differing_columns_are_errors(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["z", "a"])})
    schema = features.arrow_schema
    pa.parquet.write_table(pa.table({"label": [0, 7]}, schema=schema), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'label' holds 7, but has 2 classes: z, a"):
        read_table(tmp_path / "t.parquet")
    write_rows(tmp_path / "d" / "train.csv", [("x", "a")])
    write_rows(tmp_path / "d" / "test.csv", [("x",)], header=("text",))
    with pytest.raises(DataError, match=r"different columns \(text and text, label\)"):
        read_table(tmp_path / "d")


def test_folders_without_tables_and_with_scripts_are_errors(tmp_path):
    with pytest.raises(DataError, match="cannot use"):
        read_table(tmp_path)
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match="Dataset scripts are not run"):
        read_table(tmp_path)


def test_reading_a_folder_leaves_progress_bars_and_the_folder_as_they_were(tmp_path):
    write_rows(tmp_path / "train.csv", [("x", "a")])
    datasets.enable_progress_bars()
    read_table(tmp_path)
    assert not datasets.are_progress_bars_disabled()
    assert [path.name for path in tmp_path.rglob("*")] == ["train.csv"]
