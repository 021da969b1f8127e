"""Rows from the documentation of packages: what is found in source files, in which words, and that nothing runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit.data.docstrings import docstrings_sha256, read_docstrings
from ftkit.data.section import Docstrings
from ftkit.data.source import data_files, read_rows, source_sha256
from ftkit.errors import DataError

INIT = '''
"""Weighs parcels for the post.

A second paragraph.
"""
import pathlib
pathlib.Path(__file__).with_name("ran").write_text("x")
raise RuntimeError("this must not be imported")
'''
SCALE = '''
"""The scale and what belongs to it."""
import sys

def weigh(parcel: "Parcel", *, unit="g", places: int = 2) -> float:
    """Return the weight of a parcel.

    As in:
        weigh(parcel)
    """

async def fetch(*sources, **options):
    """Fetch parcels from all the sources."""

def short():
    """Too short to be."""

def bare(): ...

def _private():
    """This is private, so it must not be found."""

class Parcel(list, metaclass=type):
    """A parcel with a sender and
    a receiver.

    More of it.
    """

    def __len__(self):
        """Return the len of the parcel."""

    def __add__(self, other):
        """Put the other parcel into this one, where there is room."""

    @property
    def sender(self):
        """Who has sent the parcel."""

    class Label:
        """What is glued onto a parcel."""

        def read(self, text="a\\nb"):
            """Read the label with a lens."""

    class _Hidden:
        """Hidden, with all that is inside of it."""

        def inside(self):
            """Hidden as well, as its class is."""

class Box(Parcel):
    """What is glued onto a parcel."""

if sys.platform == "win32":
    def port():
        """Name the port of the scale (Windows)."""
else:
    def port():
        """Name the port of the scale (others)."""
try:
    from fast import tare
except ImportError:
    def tare():
        """Set the scale to zero again."""
'''
FILES = {
    "__init__.py": INIT,
    "scale.py": SCALE,
    "a/deep.py": '"""A module in a folder without __init__."""\n',
    "_vendored/other.py": '"""Somebody else\'s module, not to be found."""\n',
    "_private.py": '"""A private module, not to be found."""\n',
    "__main__.py": '"""What runs it, and not to be found."""\n',
    "tests/test_scale.py": '"""Tests are not to be found."""\n',
    "my-templates/x.py": '"""No module can have this name."""\n',
    "python2.py": '"""Written for an older Python."""\nprint "x"\n',
    "latin.py": '"""Written in another encoding: caf\xe9."""\n'.encode("latin-1"),
    "empty.py": "",
    "zeros.py": b'"""With a zero byte behind it."""\0\n',
    "escapes.py": '"""With an old \\d escape in it."""\n',
    "half.py": '"""Half a pair: \\ud800 and no more."""\n',
    "bom.py": '\ufeff"""Behind a byte order mark."""\n',
}
NAMES = """postpkg postpkg.a.deep postpkg.bom postpkg.escapes postpkg.half postpkg.scale postpkg.scale.weigh
postpkg.scale.fetch postpkg.scale.Parcel postpkg.scale.Parcel.__add__ postpkg.scale.Parcel.sender
postpkg.scale.Parcel.Label postpkg.scale.Parcel.Label.read postpkg.scale.port postpkg.scale.port
postpkg.scale.tare""".split()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "path" / "postpkg"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def found(*packages: str, form: str = "text") -> list[tuple[str, dict]]:
    return [(str(row.where), dict(row.values)) for row in read_docstrings(Docstrings(docstrings=packages, form=form))]


def texts(*packages: str) -> dict[str, str]:
    return {values["name"]: values["text"] for _, values in found(*packages)}


def refusal(*packages: str, form: str = "text") -> str:
    with pytest.raises(DataError) as caught:
        found(*packages, form=form)
    return str(caught.value)


def test_what_is_documented_by_module_and_in_source_order(package):
    """No private, short or test thing; no file that is not Python; an equal docstring once."""
    rows = found("postpkg")
    assert [values["name"] for _, values in rows] == NAMES
    assert [where for where, _ in rows] == [f"docstrings of postpkg row {i}" for i in range(1, len(NAMES) + 1)]


def test_nothing_of_a_package_runs(package):
    found("postpkg")
    found("postpkg.scale")
    assert not (package / "ran").exists()
    assert not [name for name in sys.modules if name.startswith("postpkg")]


def test_texts_are_the_signature_and_the_cleaned_docstring(package):
    text = texts("postpkg")
    assert text["postpkg"] == "module postpkg\n\nWeighs parcels for the post.\n\nA second paragraph."
    assert text["postpkg.scale.weigh"] == (
        "def weigh(parcel: 'Parcel', *, unit='g', places: int=2) -> float\n\n"
        "Return the weight of a parcel.\n\nAs in:\n    weigh(parcel)"
    )
    assert text["postpkg.scale.fetch"].startswith("async def fetch(*sources, **options)\n\n")
    assert text["postpkg.scale.Parcel"].startswith(
        "class Parcel(list, metaclass=type)\n\nA parcel with a sender and\na"
    )
    assert text["postpkg.scale.Parcel.Label"] == "class Label\n\nWhat is glued onto a parcel."
    assert text["postpkg.scale.Parcel.Label.read"] == "def read(self, text='a\\nb')\n\nRead the label with a lens."
    assert text["postpkg.half"] == "module postpkg.half\n\nHalf a pair: ? and no more."


def test_questions_and_answers(package):
    """The first paragraph in one line; the wording follows from the name alone."""
    rows = {values["name"]: values for _, values in found("postpkg", form="questions")}
    assert list(rows) == list(dict.fromkeys(NAMES))
    assert rows["postpkg.scale.Parcel"]["answer"] == "A parcel with a sender and a receiver."
    for name, values in rows.items():
        assert name in values["question"]
        assert values["question"].endswith("?")
        assert values["text"] == f"Question: {values['question']}\nAnswer: {values['answer']}"
        assert "\n" not in values["answer"]
    assert len({values["question"].replace(name, "") for name, values in rows.items()}) > 4


def test_an_answer_is_a_sentence_of_fitting_length(tmp_path, monkeypatch):
    """Call forms and underlines are no answer; nor is an example, a stub of a sentence, or a page."""
    docs = {
        "call": "call(x) -> int\n\nGives back a whole number.",
        "calls": "calls() -> nothing\ncalls(x,\n      y) -> int\nGives back  a\nnumber.",
        "title": "A fine title\n============\n\nand its text",
        "example": ">>> example(1)\n1\n\nGives back what it got.",
        "stub": "Stub.\n\nAnd after it what it does.",
        "page": "word " * 200,
    }
    lines = [f"def {name}():\n    {doc!r}\n" for name, doc in docs.items()]
    (tmp_path / "answerspkg.py").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {values["name"].split(".")[-1]: values["answer"] for _, values in found("answerspkg", form="questions")}
    assert rows == {"call": "Gives back a whole number.", "calls": "Gives back a number."}


def test_a_summary_is_the_first_sentence_and_the_document_what_follows(tmp_path, monkeypatch):
    """Not so where too little follows, or the sentence stands there again."""
    rest = "It takes some words, e.g. these, and it makes more of them. " * 3
    docs = {
        "sentence": f"sentence(x) -> int\nGive back a\nnumber, e.g. Five. {rest}\n\nAnd a list:\n  one",
        "paragraph": f"Give back what was given.\n\n{rest}",
        "alone": "Give back what was given to it, and leave it at that, and do nothing more with it than this.",
        "again": f"Give back it all.\n\n{rest}In short: give back, and\nGive back  it all.",
        "stub": f"Stub.\n\n{rest}",
        "page": f"Give back a whole page.\n\n{rest * 10}",
    }
    lines = [f"def {name}(x):\n    {doc!r}\n" for name, doc in docs.items()]
    (tmp_path / "summariespkg.py").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {values["name"].split(".")[-1]: values for _, values in found("summariespkg", form="summaries")}
    assert {name: (row["document"], row["summary"]) for name, row in rows.items()} == {
        "sentence": (f"def sentence(x)\n\n{rest.strip()}\n\nAnd a list:\n  one", "Give back a number, e.g. Five."),
        "paragraph": (f"def paragraph(x)\n\n{rest.strip()}", "Give back what was given."),
    }
    for row in rows.values():
        assert row["text"] == f"{row['document']}\n\nSummary: {row['summary']}"


def test_a_submodule_and_a_package_in_several_folders(package, tmp_path, monkeypatch):
    assert list(texts("postpkg.a")) == ["postpkg.a.deep"]
    assert next(iter(texts("postpkg.scale"))) == "postpkg.scale"
    for name in ("one", "two"):
        (tmp_path / name / "spacepkg").mkdir(parents=True)
        (tmp_path / name / "spacepkg" / f"{name}.py").write_text(f'"""The part that is called {name}."""\n')
        monkeypatch.syspath_prepend(str(tmp_path / name))
    assert sorted(texts("spacepkg")) == ["spacepkg.one", "spacepkg.two"]


def test_rows_are_counted_by_package_and_repeated_texts_stand_once(package):
    rows = found("postpkg.scale", "postpkg", "json")
    assert [where for where, _ in rows if "postpkg row" in where] == [
        f"docstrings of postpkg row {i}" for i in range(1, 6)
    ]
    assert "docstrings of json row 1" in [where for where, _ in rows]
    assert len({values["text"].split("\n\n", 1)[1] for _, values in rows}) == len(rows)


def test_names_that_are_no_package_are_all_refused_at_once(package):
    with pytest.raises(DataError):
        read_docstrings(Docstrings(docstrings=("jsn",)))
    assert refusal("jsn") == (
        "error: docstrings of jsn has 1 problem\n"
        "  no package named jsn is installed. Did you mean json? Install it, or correct the name."
    )
    assert refusal("postpkg.skale", "../x", "qqxxyyzz", "postpkg.scale.weigh") == (
        "error: docstrings of postpkg.skale, ../x, qqxxyyzz, postpkg.scale.weigh has 4 problems\n"
        "  postpkg has no module skale with source. Did you mean scale? Correct the name.\n"
        "  got '../x', which is no name of a package. Write the name that Python imports, such as xml.etree.\n"
        "  no package named qqxxyyzz is installed. Install it, or correct the name.\n"
        "  postpkg.scale has no module weigh with source. Correct the name."
    )


@pytest.mark.parametrize(
    ("source", "form"), [("x = 1\n", "text"), ('"""Short.\n\nAnd what follows."""\n', "questions")]
)
def test_a_package_that_says_nothing_is_refused(tmp_path, monkeypatch, source, form):
    (tmp_path / "silentpkg.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refusal("silentpkg", form=form) == (
        "error: docstrings of silentpkg has 1 problem\n"
        "  no docstring in its source files can be used. Name another package."
    )


def test_the_standard_library_with_what_is_written_in_c_and_the_topics():
    rows = found("stdlib")
    names = [values["name"] for _, values in rows]
    text = {values["name"]: values["text"] for _, values in rows}
    assert set(text) >= {
        "json",
        "json.dumps",
        "os",
        "math.sin",
        "list.append",
        "os.getcwd",
        "sys.exit",
        "sys.excepthook",
    }
    assert text["math.sin"] == "def sin(x, /)\n\nReturn the sine of x (measured in radians)."
    assert text["topic while"].startswith('The "while" statement')
    modules = [name for name in names if not name.startswith("topic ")]
    assert names == modules + sorted(set(names) - set(modules))
    assert not [text for text in text.values() if " at 0x" in text.split("\n\n")[0]]
    assert not [name for name in modules if name.split(".")[0] in ("test", "idlelib", "lib2to3", "readline")]


def test_the_same_python_gives_the_same_rows_in_any_process():
    """Whatever the seed of its hashes, and whatever a program has put into the hooks of sys."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from ftkit.data.docstrings import docstrings_sha256\n"
        "from ftkit.data.section import Docstrings\n"
        "sys.excepthook = lambda *given: 0; loaded = set(sys.modules)\n"
        "print(docstrings_sha256(Docstrings(docstrings=('stdlib', 'jinja2'))))\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - loaded}\n"
        "assert new <= sys.stdlib_module_names, new - sys.stdlib_module_names\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == docstrings_sha256(Docstrings(docstrings=("stdlib", "jinja2")))


def test_a_module_of_the_same_name_is_not_taken_for_one_in_c(tmp_path, monkeypatch):
    """A file array.py on the path must not be imported for the standard library's."""
    code = (
        "import pathlib, sys\n"
        "from ftkit.data.docstrings import read_docstrings\n"
        "from ftkit.data.section import Docstrings\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try: list(read_docstrings(Docstrings(docstrings=('xxlimited',))))\n"
        "except Exception as error: print(type(error).__name__)\n"
        "assert 'xxlimited' not in sys.modules\n"
    )
    (tmp_path / "xxlimited.py").write_text("raise RuntimeError('imported')\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "DataError\n"), done.stderr


def test_docstrings_are_a_source_like_another(package, tmp_path):
    source = Docstrings(docstrings=("postpkg",))
    assert [row.values["name"] for row in read_rows(source, tmp_path)] == NAMES
    assert data_files(source, tmp_path) is None
    assert source_sha256(source, tmp_path) == docstrings_sha256(source)


def test_the_hash_depends_on_names_and_texts(package):
    before = docstrings_sha256(Docstrings(docstrings=("postpkg",)))
    assert before != docstrings_sha256(Docstrings(docstrings=("postpkg",), form="questions"))
    (package / "scale.py").rename(package / "scales.py")
    renamed = docstrings_sha256(Docstrings(docstrings=("postpkg",)))
    (package / "bom.py").write_text('"""In front of a byte order mark."""\n')
    assert len({before, renamed, docstrings_sha256(Docstrings(docstrings=("postpkg",)))}) == 3
