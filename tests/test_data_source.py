"""Rows from files and folders: what is read, where each row stands, and what is refused in which words."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.data.source import data_files, read_rows, source_sha256
from ftkit.errors import DataError
from ftkit.files import sha256_file

TABLE = "text,label\ngood film,positive\nbad film,negative\n"
ROWS = [{"text": "good film", "label": "positive"}, {"text": "bad film", "label": "negative"}]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path.name


def parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def rows(source: str, folder: Path, **options) -> list[tuple[str, dict]]:
    return [(str(row.where), dict(row.values)) for row in read_rows(source, folder, **options)]


def refusal(source: str, folder: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        rows(source, folder, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "unit", "first"),
    [
        ("a.csv", TABLE, "line", 2),
        ("a.CSV", TABLE, "line", 2),
        ("a.csv.gz", TABLE, "line", 2),
        ("bom.csv", "\ufeff" + TABLE, "line", 2),
        ("crlf.csv", TABLE.replace("\n", "\r\n"), "line", 2),
        ("a.tsv", TABLE.replace(",", "\t"), "line", 2),
        ("a.tsv.gz", TABLE.replace(",", "\t"), "line", 2),
        ("a.json", json.dumps(ROWS), "row", 1),
        ("a.json.gz", json.dumps({"version": 1, "data": ROWS}), "row", 1),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), "line", 1),
        ("a.ndjson", "\ufeff" + "\n".join(map(json.dumps, ROWS)), "line", 1),
        ("a.jsonl.gz", "\n".join(map(json.dumps, ROWS)), "line", 1),
    ],
)
def test_each_format_gives_the_same_rows(tmp_path, name, content, unit, first):
    """Suffix, compression, byte order mark and line ends do not change what is read."""
    write(tmp_path / name, content)
    assert rows(name, tmp_path) == [(f"{name} {unit} {first + i}", row) for i, row in enumerate(ROWS)]


def test_parquet(tmp_path):
    parquet(tmp_path / "a.parquet", ROWS)
    assert rows("a.parquet", tmp_path) == [("a.parquet row 1", ROWS[0]), ("a.parquet row 2", ROWS[1])]


def test_a_row_stands_on_the_line_it_begins_on(tmp_path):
    """Quoted fields over several lines and blank lines do not shift the numbers."""
    write(tmp_path / "a.csv", 'text,label\n"one\ntwo, ""three""\n",a\n\nfour,b\n')
    assert rows("a.csv", tmp_path) == [
        ("a.csv line 2", {"text": 'one\ntwo, "three"\n', "label": "a"}),
        ("a.csv line 6", {"text": "four", "label": "b"}),
    ]


def test_quotes_in_tsv_are_text_unless_asked_for(tmp_path):
    write(tmp_path / "a.tsv", 'text\tlabel\n"never closed\ta\n"x"\tb\n')
    assert [row["text"] for _, row in rows("a.tsv", tmp_path)] == ['"never closed', '"x"']
    write(tmp_path / "b.tsv", 'text\tlabel\n"x\ty"\tb\n')
    assert [row["text"] for _, row in rows("b.tsv", tmp_path, quoting="minimal")] == ["x\ty"]


def test_very_long_fields_are_read(tmp_path):
    write(tmp_path / "a.csv", f"text,label\n{'x' * 300_000},a\n")
    assert len(rows("a.csv", tmp_path)[0][1]["text"]) == 300_000


def test_columns_without_a_name_are_left_out(tmp_path):
    """The index that pandas writes."""
    write(tmp_path / "a.csv", ",text, label\n0,x,a\n")
    assert rows("a.csv", tmp_path) == [("a.csv line 2", {"text": "x", "label": "a"})]


def test_blank_lines_of_jsonl_are_skipped_and_counted(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "a"}\n\n  \n{"text": "b"}\n')
    assert [where for where, _ in rows("a.jsonl", tmp_path)] == ["a.jsonl line 1", "a.jsonl line 4"]


def test_a_folder_of_texts_by_class(tmp_path):
    """Sorted by class and name; hidden and other files do not count; an empty file is an empty text."""
    for name, text in {
        "pos/2.txt": "b\n",
        "pos/10.txt": "a",
        "neg/1.txt": "",
        "neg/.x.txt": "z",
        "pos/x.md": "z",
    }.items():
        write(tmp_path / "reviews" / name, text)
    assert rows("reviews/", tmp_path) == [
        ("reviews/neg/1.txt line 1", {"text": "", "label": "neg"}),
        ("reviews/pos/10.txt line 1", {"text": "a", "label": "pos"}),
        ("reviews/pos/2.txt line 1", {"text": "b", "label": "pos"}),
    ]


def test_a_folder_of_files(tmp_path):
    write(tmp_path / "parts" / "b.csv", TABLE)
    write(tmp_path / "parts" / "a.csv.gz", TABLE)
    write(tmp_path / "parts" / "README.md", "about")
    places = [where for where, _ in rows("parts", tmp_path)]
    assert places == ["parts/a.csv.gz line 2", "parts/a.csv.gz line 3", "parts/b.csv line 2", "parts/b.csv line 3"]


def test_rows_are_streamed(tmp_path):
    """The first rows are there although the file breaks later."""
    write(tmp_path / "a.csv", TABLE + "x,y,z\n")
    write(tmp_path / "a.jsonl", '{"text": "a"}\nbroken\n')
    assert len(list(islice(read_rows("a.csv", tmp_path), 2))) == 2
    assert len(list(islice(read_rows("a.jsonl", tmp_path), 1))) == 1


def test_what_is_known_without_reading_is_refused_at_once(tmp_path):
    with pytest.raises(DataError):
        read_rows("a.csv", tmp_path)


SAVE = "Save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8."
BROKEN = [
    ("a.csv", "", "  the file is empty. Give a file with at least one row."),
    ("a.csv", "text,label\n", "  there is a header and no row below it. Add rows."),
    ("a.csv", "\n\n", "  there is no header. The first line names the columns."),
    ("a.csv", "text,text,label\nx,y,a\n", "  line 1   the header names a column twice: text. Rename or remove one."),
    ("a.csv", "text;label\nx;a\n", "  line 1   the columns are separated by a semicolon, where a comma is expected. Save it with commas."),
    ("a.csv", "text\tlabel\nx\ta\n", "  line 1   the columns are separated by a tab, where a comma is expected. Name the file .tsv."),
    ("a.tsv", "text,label\nx,a\n", "  line 1   the columns are separated by a comma, where a tab is expected. Name the file .csv."),
    ("a.csv", 'text,label\nx,a\n"y\nz,a\n', '  line 3   a quoted field is never closed. Close it, write " inside it as "", or set data.quoting: none.'),
    ("a.csv", 'text,label\n"y" z,a\n', '  line 2   text follows a closing quote. Write a quote inside a quoted field as "", or set data.quoting: none.'),
    ("a.csv", "text,label\rx,a\ry,b\r", "  line 1   a carriage return stands inside a field. Save the file with line ends \\n or \\r\\n."),
    ("a.csv", b"text,label\nx,a\ncaf\xe9,b\n", f"  line 3   byte 4 of the line (0xe9) is not UTF-8. {SAVE}"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', f"  line 2   byte 11 of the line (0xff) is not UTF-8. {SAVE}"),
    ("a.csv", "text".encode("utf-16"), "  this is text in UTF-16. Save it as UTF-8."),
    ("a.csv", b"PK\x03\x04rest", "  this is a zip archive or an Excel workbook. Save the table as CSV in UTF-8."),
    ("a.csv", gzip.compress(b"text"), "  this is compressed with gzip. Add .gz to its name."),
    ("a.json", b"abc\0", "  byte 4 is zero, so this is no text. Give a text file in UTF-8."),
    ("a.jsonl", "\n \n", "  there is no row in it. Write one JSON object a line."),
    ("a.jsonl", '{"text": "a"}\n{"text": \n', "  line 2   not JSON: Expecting value at column 9. Write one object a line."),
    ("a.jsonl", '["a"]\n', '  line 1   this is a list, not an object. Write {"text": …, "label": …}.'),
    ("a.json", '"text"', '  this is a text. Write [{…}, {…}] or {"data": [{…}, {…}]}.'),
    ("a.json", "null", '  this is null. Write [{…}, {…}] or {"data": [{…}, {…}]}.'),
    ("a.json", '{"rows": []}', '  this is an object without a list named data. Write [{…}, {…}] or {"data": [{…}, {…}]}.'),
    ("a.json", "[]", "  the list is empty. Add rows."),
    ("a.json", '[{"a": 1}, 7]', '  row 2   this is a number, not an object. Write {"text": …, "label": …}.'),
    ("a.json", '{"a": 1}\n{"a": 2}', "  line 2   not JSON: Extra data at column 1. One object a line is JSON Lines: name the file .jsonl."),
    ("a.json", '[{"a": 1},\n]', "  line 1   not JSON: Illegal trailing comma before end of array at column 10."),
    ("a.log", "x", "  the suffix .log is not known. Accepted: .csv, .tsv, .json, .jsonl, .ndjson, .parquet, .txt, .md, text ones also with .gz or .zst."),
    ("data", "x", "  the suffix (none) is not known. Accepted: .csv, .tsv, .json, .jsonl, .ndjson, .parquet, .txt, .md, text ones also with .gz or .zst."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN)
def test_the_words_of_each_refusal(tmp_path, name, content, expected):
    write(tmp_path / name, content)
    message = refusal(name, tmp_path)
    if "trailing comma" in expected:  # the wording of Python before 3.13
        assert message.startswith(f"error: {name} has 1 problem\n  line ")
        return
    assert message == f"error: {name} has 1 problem\n{expected}"


def test_all_ragged_rows_are_named(tmp_path):
    write(tmp_path / "a.csv", "text,label\nx,a\nno label\nfine,b\none, two,c\n")
    assert refusal("a.csv", tmp_path) == (
        "error: a.csv has 2 problems\n"
        "  line 3   1 field where the header has 2 (text, label). Add what is missing.\n"
        '  line 5   3 fields where the header has 2 (text, label). Put the field that holds a comma in quotes (").'
    )


def test_a_ragged_row_of_a_tsv(tmp_path):
    write(tmp_path / "a.tsv", "text\tlabel\nx\ty\tz\n")
    assert refusal("a.tsv", tmp_path).endswith(
        "Remove the tab inside a field, or quote the field and set data.quoting: minimal."
    )


def test_the_list_of_bad_rows_is_cut_at_ten(tmp_path):
    write(tmp_path / "a.jsonl", "broken\n" * 1_500)
    lines = refusal("a.jsonl", tmp_path).splitlines()
    assert lines[0] == "error: a.jsonl has 1500 problems"
    assert len(lines) == 12
    assert lines[-1] == "  and 1,490 more."


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 5_000 + "}"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_python_cannot_hold_is_refused(tmp_path, name, content):
    write(tmp_path / name, content)
    assert refusal(name, tmp_path).startswith(f"error: {name} has 1 problem\n")


@pytest.mark.parametrize("data", [b"not gzip at all", gzip.compress(TABLE.encode() * 50)[:-20]])
def test_a_damaged_gzip_file(tmp_path, data):
    (tmp_path / "a.csv.gz").write_bytes(data)
    assert "cannot be read: " in refusal("a.csv.gz", tmp_path)


@pytest.mark.parametrize("data", [b"", b"PAR1 and then nothing", b"text,label\nx,a\n"])
def test_a_damaged_parquet_file(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)
    assert "not readable as Parquet: " in refusal("a.parquet", tmp_path)


def test_an_empty_parquet_file(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    assert refusal("a.parquet", tmp_path).endswith("there is no row in it. Add rows.")


def test_a_missing_file_names_the_nearest_and_what_is_there(tmp_path):
    write(tmp_path / "data" / "train.csv", TABLE)
    write(tmp_path / "data" / "test.csv", TABLE)
    assert refusal("data/trian.csv", tmp_path) == (
        "error: data/trian.csv has 1 problem\n"
        f"  there is no trian.csv in {tmp_path}/data. Did you mean train.csv? There: test.csv, train.csv."
    )


def test_a_missing_folder_is_not_taken_for_a_hub_id(tmp_path):
    """data/trian has the form of a hub id, but data is a folder here."""
    write(tmp_path / "data" / "train" / "a.csv", TABLE)
    assert "Did you mean train? There: train." in refusal("data/trian", tmp_path)
    assert "there is no dta in" in refusal("dta/train.csv", tmp_path)


def test_a_hub_id_without_organisation_is_explained(tmp_path):
    assert refusal("imdb", tmp_path).endswith("A data set of the hub is written org/name.")


def test_a_local_path_goes_before_a_hub_id(tmp_path):
    write(tmp_path / "org" / "name" / "a.csv", TABLE)
    assert data_files("other/name", tmp_path) is None
    assert [file.shown for file in data_files("org/name", tmp_path)] == ["org/name/a.csv"]


def test_a_folder_of_two_kinds(tmp_path):
    write(tmp_path / "d" / "a.csv", TABLE)
    write(tmp_path / "d" / "b.jsonl", "{}")
    assert refusal("d", tmp_path) == (
        "error: d has 1 problem\n  the folder holds several kinds of data: csv (a.csv), jsonl (b.jsonl). "
        "Name the files to read, or leave one kind in it."
    )


def test_a_folder_without_data(tmp_path):
    (tmp_path / "d" / "empty").mkdir(parents=True)
    assert "the folder holds no data. Expected files of one kind (.csv, " in refusal("d", tmp_path)


def test_hashes_depend_on_names_and_bytes(tmp_path):
    write(tmp_path / "a.csv", TABLE)
    write(tmp_path / "d" / "pos" / "1.txt", "x")
    write(tmp_path / "e" / "neg" / "1.txt", "x")
    assert source_sha256("a.csv", tmp_path) == sha256_file(tmp_path / "a.csv")
    assert source_sha256("d", tmp_path) != source_sha256("e", tmp_path)
    assert source_sha256("org/name", tmp_path) is None


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(',"\t\n\r[]{}:a1|').map(str.encode))
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".csv.gz"])
def test_whatever_stands_in_a_file_gives_rows_or_a_refusal(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    try:
        message = "" if rows(f"a{suffix}", tmp_path) else "neither"
    except DataError as error:
        message = str(error)
    assert message == "" or message.startswith(f"error: a{suffix} has ")
