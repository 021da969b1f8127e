"""Text files as rows: documents, lines, paragraphs; folders of them; compression; and what is refused."""

import gzip
import random
import textwrap
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ftkit.data.source import data_files, read_rows, source_sha256
from ftkit.data.texts import read_text
from ftkit.errors import DataError

POEM = "one\n  two \n\n \nthree\n\n"
TABLE = "text,label\ngood film,positive\n"


def packed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return zstandard.compress(data) if name.endswith(".zst") else data


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(path.name, content.encode() if isinstance(content, str) else content))


def rows(source: str, folder: Path, **options) -> list[tuple[str, dict]]:
    return [(str(row.where), dict(row.values)) for row in read_rows(source, folder, **options)]


def refusal(source: str, folder: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        rows(source, folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.TXT", "a.txt.gz", "a.md.zst", "a.txt.ZST"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, [(1, "one\n  two \n\n \nthree")]),
        ("document", [(1, "one\n  two \n\n \nthree")]),
        ("line", [(1, "one"), (2, "  two "), (5, "three")]),
        ("paragraph", [(1, "one\n  two "), (5, "three")]),
    ],
)
@pytest.mark.parametrize("form", ["plain", "crlf", "bom"])
def test_what_a_row_is(tmp_path, name, split, expected, form):
    """Compression, line ends and a byte order mark do not change what is read, nor the lines it stands on."""
    text = {"plain": POEM, "crlf": POEM.replace("\n", "\r\n"), "bom": "\ufeff" + POEM}[form]
    data = packed(name.lower(), text.encode())
    (tmp_path / name).write_bytes(data)
    assert rows(name, tmp_path, split=split) == [(f"{name} line {line}", {"text": part}) for line, part in expected]


def test_only_line_ends_end_a_line(tmp_path):
    """Not the form feeds and separators that str.splitlines also takes; and blank lines may hold spaces."""
    write(tmp_path / "a.txt", "one\x0cstill\u2028one\n\t\ntwo")
    assert [row["text"] for _, row in rows("a.txt", tmp_path, split="paragraph")] == ["one\x0cstill\u2028one", "two"]


@given(st.text("ab \n\r\t\u2028\ufeff", max_size=40))
def test_each_split_keeps_all_but_line_ends_and_blank_lines(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_bytes(text.encode())
    whole = next(read_text(path, "a.txt", "document", None)).values["text"]
    lines = [row.values["text"] for row in read_text(path, "a.txt", "line", None)]
    paragraphs = [row.values["text"] for row in read_text(path, "a.txt", "paragraph", None)]
    assert [line for block in paragraphs for line in block.split("\n")] == lines
    assert [line for line in whole.split("\n") if line.strip()] == lines


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"fine\ncaf\xe9\n", "  line 2   byte 4 of the line (0xe9) is not UTF-8. Save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8."),
        ("a.txt.zst", b"fine\ncaf\xe9\n", "  line 2   byte 4 of the line (0xe9) is not UTF-8. Save the file as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8."),
        ("a.txt", zstandard.compress(b"text"), "  this is compressed with zstd. Add .zst to its name."),
        ("a.md", gzip.compress(b"text"), "  this is compressed with gzip. Add .gz to its name."),
        ("a.txt", b"a\0b", "  byte 2 is zero, so this is no text. Give a text file in UTF-8."),
        ("a.txt", b"\n \n", "  there is no text in it. Add text."),
        ("a.txt.gz", b"", "  there is no text in it. Add text."),
        ("a.parquet.zst", b"x", "  the suffix .zst is not known. Accepted: .csv, .tsv, .json, .jsonl, .ndjson, .parquet, .txt, .md, text ones also with .gz or .zst."),
    ],
)  # fmt: skip
def test_the_words_of_each_refusal(tmp_path, name, content, expected):
    write(tmp_path / name, content)
    assert refusal(name, tmp_path, split="line") == f"error: {name} has 1 problem\n{expected}"


@pytest.mark.parametrize("split", ["document", "line", "paragraph"])
def test_bad_bytes_are_refused_in_each_form(tmp_path, split):
    write(tmp_path / "a.txt", b"fine\n\ncaf\xe9\n")
    assert "line 3   byte 4 of the line (0xe9) is not UTF-8." in refusal("a.txt", tmp_path, split=split)


@pytest.mark.parametrize("name", ["a.csv.zst", "a.tsv.zst", "a.json.zst", "a.jsonl.zst"])
def test_tables_in_zstd(tmp_path, name):
    content = {"csv": TABLE, "tsv": TABLE.replace(",", "\t")}.get(
        name.split(".")[1], '[{"text": "good film", "label": "positive"}]'
    )
    write(tmp_path / name, content[1:-1] if "jsonl" in name else content)
    assert [row for _, row in rows(name, tmp_path)] == [{"text": "good film", "label": "positive"}]


def test_several_frames_large_windows_and_long_texts_in_zstd(tmp_path):
    """As pzstd, cat and zstd --long write them."""
    window = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    unsized = zstandard.ZstdCompressor(compression_params=window).compressobj()
    frames = [
        zstandard.compress(b"one\n"),
        b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc",  # a skippable frame
        unsized.compress(b"two " * 300_000 + b"\n") + unsized.flush(),
        zstandard.compress(b""),
        zstandard.compress(b"three"),
    ]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert [row["text"] for _, row in rows("a.txt.zst", tmp_path, split="line")] == ["one", "two " * 300_000, "three"]


@pytest.mark.parametrize("split", ["document", "line", "paragraph"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"no zstd at all", "Unknown frame descriptor"),
        (lambda data: data[:-5], "the compressed file ended before its end-of-stream marker was reached"),
        (lambda data: data[:3], "the compressed file ended before its end-of-stream marker was reached"),
        (lambda data: data + b"rest of something", "Unknown frame descriptor"),
        (lambda data: data[:40] + b"\xff\xff\xff\xff" + data[44:], ""),
    ],
)
def test_a_damaged_zstd_file(tmp_path, split, damage, reason):
    text = "".join(f"{number * 7919 % 10007}\n" for number in range(3000))
    data = zstandard.ZstdCompressor(write_checksum=True).compress(text.encode())
    (tmp_path / "a.txt.zst").write_bytes(damage(data))
    message = refusal("a.txt.zst", tmp_path, split=split)
    assert message.startswith("error: a.txt.zst has 1 problem\n  cannot be read: ")
    assert reason in message


def test_a_file_that_is_cut_off_gives_no_rows_in_silence(tmp_path):
    """Wherever the cut is: the rows before it may come, then a refusal."""
    data = zstandard.compress(POEM.encode() * 50)
    for size in range(1, len(data)):
        (tmp_path / "a.txt.zst").write_bytes(data[:size])
        refusal("a.txt.zst", tmp_path, split="line")


def test_a_folder_of_texts_is_read_to_its_depths_in_order(tmp_path):
    """Hidden files and folders and other suffixes do not count; an empty file is an empty document, and no line."""
    contents = {"b.md": "b", "a.txt": "a1\n\na2", "c/d/e.txt.gz": "e", "c/z.txt.zst": "z", "c/empty.txt": "",
                ".hidden.txt": "x", ".git/x.txt": "x", "notes.pdf": "x", "c/picture.png": "x"}  # fmt: skip
    for name, content in contents.items():
        write(tmp_path / "corpus" / name, content)
    assert rows("corpus/", tmp_path, split="document") == [
        ("corpus/a.txt line 1", {"text": "a1\n\na2"}),
        ("corpus/b.md line 1", {"text": "b"}),
        ("corpus/c/d/e.txt.gz line 1", {"text": "e", "label": "d"}),
        ("corpus/c/empty.txt line 1", {"text": "", "label": "c"}),
        ("corpus/c/z.txt.zst line 1", {"text": "z", "label": "c"}),
    ]
    assert [where for where, _ in rows("corpus", tmp_path, split="line")] == [
        "corpus/a.txt line 1", "corpus/a.txt line 3", "corpus/b.md line 1", "corpus/c/d/e.txt.gz line 1",
        "corpus/c/z.txt.zst line 1",
    ]  # fmt: skip


def test_a_link_that_leads_back_ends(tmp_path):
    write(tmp_path / "corpus" / "sub" / "a.txt", "a")
    (tmp_path / "corpus" / "sub" / "back").symlink_to(tmp_path / "corpus")
    assert [where for where, _ in rows("corpus", tmp_path, split="line")] == ["corpus/sub/a.txt line 1"]


def test_texts_by_class_are_these_alone_unless_a_corpus_is_asked_for(tmp_path):
    """For a classifier, what lies beside and below the folders of classes stays out, as it always has."""
    for name in ("urls.txt", "README.md", "pos/1.txt", "pos/notes.md", "pos/2.txt.gz", "pos/more/3.txt", "neg/1.txt"):
        write(tmp_path / "reviews" / name, name)
    assert rows("reviews", tmp_path) == [
        ("reviews/neg/1.txt line 1", {"text": "neg/1.txt", "label": "neg"}),
        ("reviews/pos/1.txt line 1", {"text": "pos/1.txt", "label": "pos"}),
    ]
    assert len(rows("reviews", tmp_path, split="document")) == 7


def test_texts_beside_tables_do_not_count_but_classes_do(tmp_path):
    write(tmp_path / "d" / "a.csv", TABLE)
    write(tmp_path / "d" / "README.txt", "about")
    write(tmp_path / "d" / "docs" / "more.md", "about")
    assert [file.shown for file in data_files("d", tmp_path)] == ["d/a.csv"]
    write(tmp_path / "d" / "pos" / "1.txt", "x")
    assert "several kinds of data: csv (a.csv), text (pos/1.txt)." in refusal("d", tmp_path)


def test_the_hash_of_a_corpus_covers_every_file(tmp_path):
    write(tmp_path / "corpus" / "pos" / "1.txt", "x")
    seen = {source_sha256("corpus", tmp_path)}
    for name in ("top.txt", "pos/deep/2.md"):
        write(tmp_path / "corpus" / name, "y")
        seen.add(source_sha256("corpus", tmp_path))
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
@pytest.mark.parametrize("split", ["line", "paragraph"])
def test_the_first_rows_of_a_large_file_are_there_without_the_rest(tmp_path, name, split):
    """The file breaks at its end, which would be told if it were read; and its 10 MB of text are not held."""
    chance = random.Random(0)
    blocks = ("\n\n".join(textwrap.wrap(chance.randbytes(50_000).hex(), 100)) + "\n\n" for _ in range(100))
    write(tmp_path / name, "".join(blocks).encode() + b"\xff\n")
    tracemalloc.start()
    taken = list(islice(read_rows(name, tmp_path, split=split), 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(taken), taken[-1].where.number) == (1000, 1999)
    assert peak < 2e6
    with pytest.raises(DataError, match="is not UTF-8"):
        sum(1 for _ in read_rows(name, tmp_path, split=split))
