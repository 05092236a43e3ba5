"""Tables as people have them: other separators, quotes, encodings, headers, JSON layouts, archives, and broken rows."""

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from hftoolkit.data.tables import read_table, require_columns
from hftoolkit.data.texts import load_text_splits
from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError
from hftoolkit.recipe import TextClassification, TextData
from hftoolkit.recipe.sections import TableFormat

TASK = TextClassification(kind="text-classification")
ROWS = [{"text": f"word {number}, and more", "label": "ab"[number % 2]} for number in range(30)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label")}
HAS_OPENPYXL = find_spec("openpyxl") is not None


def section(**keys) -> TextData:
    return TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}, **keys})


def lines_of(separator: str, header: bool = True, quote: str = "") -> str:
    rows = [[quote + row["text"] + quote, row["label"]] for row in ROWS]
    return "\n".join(separator.join(cells) for cells in ([["text", "label"]] if header else []) + rows) + "\n"


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def message_of(path: Path, **keys) -> str:
    with pytest.raises(HFToolkitError) as caught:
        read_table(path, **keys)
    return str(caught.value)


# Separators and headers


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt"])
@pytest.mark.parametrize(("separator", "said"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a vertical bar")])
def test_a_separator_that_the_ending_does_not_promise_is_found_and_said(tmp_path, name, separator, said):
    table = read_table(put(tmp_path / name, lines_of(separator)))
    assert table.columns == COLUMNS
    promised = (name, separator) == ("t.tsv", "\t")
    assert table.notes == (() if promised else (f"cells of {name} are separated by {said} (data.format.separator)",))


def test_the_usual_separator_stays_where_it_divides_the_lines_evenly(tmp_path):
    table = read_table(put(tmp_path / "t.csv", "a;b,c|d\n1;2,3|4\n5,6\n"))
    assert table.columns == {"a;b": ["1;2", "5"], "c|d": ["3|4", "6"]}
    assert table.notes == ()
    assert read_table(put(tmp_path / "one.csv", "text; or not\nhello\nthere\n")).columns == {
        "text; or not": ["hello", "there"]
    }
    assert read_table(put(tmp_path / "one.txt", "text\na, b\nc\n")).columns == {"text": ["a, b", "c"]}


def test_a_separator_can_be_said_in_the_recipe_or_in_the_first_line(tmp_path):
    path = put(tmp_path / "t.csv", "text,more^label\na^1\n")
    assert read_table(path, how=TableFormat(separator="^")).columns == {"text,more": ["a"], "label": ["1"]}
    assert read_table(put(path, "sep=;\r\ntext,more;label\r\na;1\r\n")).columns == {"text,more": ["a"], "label": ["1"]}


def test_columns_of_a_file_without_a_header_are_named_by_the_recipe(tmp_path):
    path = put(tmp_path / "t.csv", lines_of("\t", header=False))
    named = TableFormat(names=("text", "label"))
    assert read_table(path, how=named).columns == COLUMNS
    table = read_table(path)
    with pytest.raises(DataError, match=r"first line was taken as the header; .*data.format.names: \[NAME, NAME\]"):
        require_columns(table, ["text"], "data.columns.text")
    assert "30 of 30 rows; set data.format.separator" in message_of(path, how=TableFormat(names=("text",)))
    with_header = read_table(put(path, lines_of("\t")), how=named)
    assert with_header.columns == COLUMNS
    assert with_header.notes[-1] == "the first line of t.csv is a header, and no row; data.format.names is not used"
    assert read_table(put(path, "text\nonly this\n"), how=named).columns == {"text": ["only this"]}


def test_a_separator_that_was_not_found_is_named_with_the_missing_column(tmp_path):
    table = read_table(put(tmp_path / "t.csv", lines_of("^").replace(",", "")))
    with pytest.raises(DataError, match=r"Only one column was found; .* set data.format.separator"):
        require_columns(table, ["text"], "data.columns.text")
    assert "or remove what stands before the header" in message_of(put(tmp_path / "c.csv", "# by x\n" + lines_of(";")))


def test_a_mistyped_column_is_not_taken_for_a_missing_header(tmp_path):
    table = read_table(put(tmp_path / "t.csv", lines_of("\t")))
    with pytest.raises(DataError) as caught:
        require_columns(table, ["txet"], "data.columns.text")
    assert "first line" not in str(caught.value)


def test_columns_of_one_name_matter_only_where_they_are_used(tmp_path):
    table = read_table(put(tmp_path / "t.csv", "text,note,label, note\na,1,x,2\n"))
    require_columns(table, ["text", "label"], "data.columns")
    with pytest.raises(DataError, match=r"2 columns called 'note'.* 'note \(column 2\)', 'note \(column 4\)'"):
        require_columns(table, ["note"], "data.columns.text")
    require_columns(table, ["note (column 4)"], "data.columns.text")
    assert table.columns["note (column 4)"] == ["2"]


# Quotes


def raw_quotes(separator: str) -> tuple[str, dict[str, list[str]]]:
    """Return lines whose texts begin or end with plain quotes, and their columns."""
    texts = [f"text {number}" for number in range(12)]
    texts[2], texts[5], texts[8] = '"the start', 'the end"', '"one" word'
    labels = ["ab"[number % 2] for number in range(12)]
    lines = [f"{label}{separator}{text}" for label, text in zip(labels, texts, strict=True)]
    return "\n".join([f"label{separator}text", *lines, ""]), {"label": labels, "text": texts}


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_plain_quotes_between_tabs_fuse_no_rows(tmp_path, name):
    content, columns = raw_quotes("\t")
    table = read_table(put(tmp_path / name, content))
    assert table.columns == columns
    assert table.notes[-1].startswith(f"quotes in {name} are read as plain characters")
    assert read_table(tmp_path / name, how=TableFormat(quoting="none")).columns == columns


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_plain_quotes_that_would_fuse_rows_are_refused_with_the_knob(tmp_path, separator):
    content, columns = raw_quotes(separator)
    path = put(tmp_path / "t.csv", content)
    assert "et data.format.quoting: none" in message_of(path)
    assert read_table(path, how=TableFormat(quoting="none")).columns == columns
    fused = put(tmp_path / "f.csv", content.replace('"one" word', "one word"))
    assert "lines that are rows by themselves. Set data.format.quoting: none" in message_of(fused)
    assert read_table(fused, how=TableFormat(quoting="standard")).num_rows == 9


def test_quoted_cells_of_several_lines_stay_cells(tmp_path):
    cells = ["two\nlines", "a\tb\n\nc", 'she said "no"\nand, left', "plain"]
    for name, separator in (("t.tsv", "\t"), ("t.csv", ",")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([("label", "text"), *(("x", cell) for cell in cells)])
        table = read_table(tmp_path / name)
        assert (table.columns["text"], table.notes) == (cells, ())


# Rows that cannot be read


RAGGED = "text,label\n" + "\n".join(f"text {n},{'ab'[n % 2]}" for n in range(20)) + '\none\n1,2,3\n"a" b,a\nlast,b,,\n'


def test_ragged_rows_are_bad_rows_like_others(tmp_path):
    path = put(tmp_path / "t.csv", RAGGED)
    assert "row 21 (line 22) has 1 cells, but there are 2 columns" in message_of(path)
    with pytest.raises(DataError) as caught:
        load_text_splits(path, section(), TASK)
    assert "3 rows of t.csv cannot be used" in str(caught.value)
    assert "another number of cells than the header: 2 (rows 21 (line 22), 22 (line 23))" in str(caught.value)
    assert "quotes in the wrong places: 1 (row 23 (line 24))" in str(caught.value)
    splits = load_text_splits(path, section(on_bad_rows="skip"), TASK)
    assert (splits.summary["rows_read"], splits.summary["rows_kept"]) == (24, 21)
    assert 24 in {number for numbers in splits.row_numbers.values() for number in numbers.tolist()}


def test_lines_that_are_no_json_are_bad_rows_too(tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    lines[3], lines[7] = lines[3][:-4], "[1, 2]"
    path = put(tmp_path / "t.jsonl", "\n".join(lines))
    assert "t.jsonl, row 4 (line 4) is not valid JSON" in message_of(path)
    splits = load_text_splits(path, section(on_bad_rows="skip"), TASK)
    assert splits.summary["skipped"] == {"row is not valid JSON": 1, "row is not an object": 1}


def test_a_file_most_of_whose_rows_are_broken_is_no_table_even_when_bad_rows_are_skipped(tmp_path):
    path = put(tmp_path / "t.csv", "text:label\n" + "a, b:1\n" * 9)
    with pytest.raises(DataError, match=r"9 of 9 rows; set data.format.separator"):
        load_text_splits(path, section(on_bad_rows="skip"), TASK)


# Encodings

UMLAUTS = "text,label\nein sch\u00f6ner Tag,gut\n"
CHINESE = "text,label\n\u8863\u670d\u7684\u8d28\u91cf\u5f88\u597d\u6211\u5f88\u559c\u6b22,\u597d\n"
RUSSIAN = "text,label\n\u043f\u0440\u0438\u0432\u0435\u0442,\u0434\u0430\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_found_with_and_without_a_mark(tmp_path, encoding):
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    for text in (UMLAUTS, CHINESE):
        table = read_table(put(tmp_path / "t.csv", mark + text.encode(encoding)))
        assert [*table.columns, table.columns["text"][0]] == ["text", "label", text.split("\n")[1].split(",")[0]]
        assert bool(table.notes) == encoding.startswith(("utf-16", "utf-32"))


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        (UMLAUTS, "cp1252", "here: cp1252 'ein sch\u00f6ner Tag"),
        ("text,label\nbien s\u00fbr d\u00e9j\u00e0 vu et les autres,1\n", "cp1252", "here: cp1252 'bien s\u00fbr"),
        ("text,label\nksi\u0105\u017cka jest,1\n", "cp1250", "here: cp1250 'ksi\u0105"),
        (CHINESE, "gbk", "here: gb18030 '\u8863\u670d"),
        (RUSSIAN, "cp1251", "here: cp1251 '\u043f\u0440\u0438"),
        ("text,label\nprice 5 \u20ac \u2013 ok,1\n", "cp1252", "here: cp1252 'price 5 \u20ac"),
    ],
)
def test_other_encodings_are_shown_and_never_guessed(tmp_path, text, encoding, shown):
    path = put(tmp_path / "t.csv", text.encode(encoding))
    message = message_of(path)
    assert "t.csv is not UTF-8" in message
    assert "in line 2). Set data.format.encoding to the one that reads right here" in message
    assert shown in message
    table = read_table(path, how=TableFormat(encoding=encoding))
    assert table.columns["text"] == [text.split("\n")[1].split(",")[0]]


def test_a_damaged_line_among_others_in_utf8_is_no_other_encoding(tmp_path):
    content = (UMLAUTS + "\u00fcber,x\n\u00e0 la carte,y\n").encode() + b"caf\xe9,z\n"
    message = message_of(put(tmp_path / "t.csv", content))
    assert "in line 5), and 3 other lines are: 1 lines are damaged; correct or remove them" in message


def test_a_wrong_encoding_of_the_recipe_is_refused(tmp_path):
    path = put(tmp_path / "t.csv", UMLAUTS.encode("cp1252"))
    assert "t.csv is not in utf-8 (byte 0xf6 in line 2); correct data.format.encoding" in message_of(
        path, how=TableFormat(encoding="utf-8")
    )
    with pytest.raises(ValueError, match="'utf-7x' is no encoding of texts; write one like utf-8, cp1252"):
        TableFormat(encoding="utf-7x")


# JSON

SPLIT_ROWS = {"train": ROWS[:20], "dev": ROWS[20:25], "test": ROWS[25:]}


@pytest.mark.parametrize(
    ("document", "note"),
    [
        ({"data": ROWS}, "'data'"),
        ({"version": 1, "labels": ["a", "b"], "result": {"items": ROWS, "count": 30}}, "'result.items'"),
        (COLUMNS, None),
        ({"version": 2, **COLUMNS}, None),
        ({name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in COLUMNS.items()}, None),
        ({str(n): row for n, row in enumerate(ROWS)}, None),
        ({f"id{n}": row for n, row in enumerate(ROWS)}, None),
        ({"columns": ["text", "label"], "index": [0], "data": [list(row.values()) for row in ROWS]}, None),
        ({"schema": {"fields": []}, "data": ROWS}, None),
    ],
    ids=["root", "nested", "lists", "lists-and-version", "columns", "index", "named-index", "split", "table"],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_objects_that_hold_rows_are_read(tmp_path, document, note, indent):
    table = read_table(put(tmp_path / "t.json", json.dumps(document, indent=indent)))
    assert table.columns == COLUMNS
    assert table.notes == ((f"the rows of t.json are those under the key {note}",) if note else ())


def test_one_object_in_a_line_of_a_file_of_lines_is_a_row(tmp_path):
    row = {"words": ["a", "b"], "tags": ["O", "O"]}
    assert read_table(put(tmp_path / "t.jsonl", json.dumps(row))).columns == {
        "words": [["a", "b"]],
        "tags": [["O", "O"]],
    }
    assert read_table(put(tmp_path / "t.json", '{"text": "a", "label": 1}')).columns == {"text": ["a"], "label": [1]}


def test_of_several_lists_the_recipe_names_one(tmp_path):
    path = put(tmp_path / "t.json", json.dumps({"rows": ROWS, "by": {"authors": [{"name": "x"}, {"name": "y"}]}}))
    assert "'rows' (30 rows), 'by.authors' (2 rows); set data.format.root to one key" in message_of(path)
    assert read_table(path, how=TableFormat(root="rows")).columns == COLUMNS
    assert read_table(path, how=TableFormat(root="by.authors")).columns == {"name": ["x", "y"]}
    assert "no key 'authors' of data.format.root: 'authors'; there are: 'rows', 'by'" in message_of(
        path, how=TableFormat(root="authors")
    )


def test_lists_under_the_names_of_splits_are_splits(tmp_path):
    path = put(tmp_path / "t.json", json.dumps(SPLIT_ROWS))
    assert load_text_splits(path, section(), TASK).summary["sizes"] == {"train": 20, "validation": 5, "test": 5}


def test_lists_under_the_names_of_splits_take_the_names_of_the_recipe(tmp_path):
    rows = {split: [list(row.values()) for row in those] for split, those in SPLIT_ROWS.items()}
    path = put(tmp_path / "t.json", json.dumps(rows))
    assert "data.format.names names the cells of rows that are lists" in message_of(path)
    told = section(format={"names": ["text", "label"]})
    assert load_text_splits(path, told, TASK).summary["sizes"] == {"train": 20, "validation": 5, "test": 5}


@pytest.mark.parametrize(
    "content", ['{"a": {"b": 1}, "c": 2}', '{"data": [["x", "y"]]}', "[[1, 2], [3, 4]]", '"text"', "{", "[1, 2]"]
)
def test_json_without_rows_is_told_how_to_write_them(tmp_path, content):
    assert 'orient="records"' in message_of(put(tmp_path / "t.json", content))


def test_rows_that_are_lists_take_the_names_of_the_recipe(tmp_path):
    content = json.dumps([list(row.values()) for row in ROWS])
    assert "data.format.names would name the 2 cells" in message_of(put(tmp_path / "t.json", content))
    assert read_table(tmp_path / "t.json", how=TableFormat(names=("text", "label"))).columns == COLUMNS


# Archives, compression, spreadsheets


def zipped(path: Path, **files: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", ".").replace("_S_", "/"), content)
    return path


def test_the_only_table_of_a_zip_archive_is_read(tmp_path):
    path = zipped(tmp_path / "train.csv.zip", data_S_base__csv=lines_of(";"), README__md="words", __hidden__csv="x")
    assert read_table(path).columns == COLUMNS
    parquet = tmp_path / "t.jsonl"
    put(parquet, "\n".join(map(json.dumps, ROWS)))
    assert read_table(zipped(tmp_path / "x.zip", t__jsonl=parquet.read_bytes())).columns == COLUMNS


def test_other_zip_archives_are_told_to_be_unzipped(tmp_path):
    both = zipped(tmp_path / "t.zip", train__csv="text\na\n", test__csv="text\nb\n")
    assert "a zip archive with the tables train.csv, test.csv" in message_of(both)
    assert "no table (a.png)" in message_of(zipped(tmp_path / "i.zip", a__png=b"x"))
    assert "Unzip it" in message_of(both)
    assert "cannot read d.zip" in message_of(put(tmp_path / "d.zip", both.read_bytes()[:40]))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zip"])
def test_what_unpacks_to_far_more_than_it_is_is_refused(tmp_path, ending, monkeypatch):
    monkeypatch.setattr("hftoolkit.data.formats.content.ALWAYS_ALLOWED_BYTES", 1_000_000)
    content = b"text,label\n" + b"a" * 2_000_000
    path = tmp_path / f"t.csv{ending}"
    if ending == ".zip":
        zipped(path, t__csv=content)
    else:
        put(path, {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending].compress(content))
    assert f"t.csv{ending} unpacks to more than 200 times" in message_of(path)
    put(tmp_path / "t.csv", content[:900_000] + b",a\n")
    assert read_table(tmp_path / "t.csv").num_rows == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x1f\x8b\x08", "compressed with gzip; call it t.csv.gz"),
        (b"PK\x03\x04", "a zip archive or an Excel file"),
        (b"PAR1xx", "a Parquet file"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_with_the_ending_of_another_kind_is_named_as_what_it_is(tmp_path, content, said):
    assert f"t.csv is no table but {said}" in message_of(put(tmp_path / "t.csv", content))


@pytest.mark.skipif(HAS_OPENPYXL, reason="openpyxl is installed")
def test_without_openpyxl_an_excel_file_says_what_to_do(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"is an Excel file; pip install 'hftoolkit\[excel\]' .* save it as CSV"):
        read_table(put(tmp_path / "t.xlsx", b"PK"))


@pytest.mark.skipif(not HAS_OPENPYXL, reason="openpyxl is not installed")
def test_a_sheet_of_an_excel_file_is_read(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    for cells in ([], ["text", None, "label"], ["a", None, 1], [None, None, None], ["b", None, 2.5]):
        book.active.append(cells)
    book.create_sheet("more").append(["x"])
    book["more"].append(["y"])
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    assert table.columns == {"text": ["a", "b"], "label": [1, 2.5]}
    assert table.notes == ("of t.xlsx, the sheet 'Sheet' is read, not more (data.format.sheet)",)
    assert read_table(tmp_path / "t.xlsx", how=TableFormat(sheet="more")).columns == {"x": ["y"]}
    assert "no sheet 'no'; it has: Sheet, more" in message_of(tmp_path / "t.xlsx", how=TableFormat(sheet="no"))
    assert "cannot read d.xlsx as an Excel file" in message_of(put(tmp_path / "d.xlsx", b"PK\x03\x04"))
