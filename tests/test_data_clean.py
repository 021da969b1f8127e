"""Cleaning: what each step changes and drops, in which order, and that it is counted."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data.clean import Cleaner, Step, repetition, without_control
from ftkit.data.language import language_of, unknown_languages
from ftkit.data.markup import html_text
from ftkit.data.nearby import Seen, fingerprint
from ftkit.data.section import Clean

NOTHING = {"control": False, "duplicates": "keep", "test_overlap": "keep"}
ENGLISH = "The cat sat on the mat and looked out of the window for the whole long afternoon."
GERMAN = "Die Katze saß auf der Matte und schaute den ganzen langen Nachmittag aus dem Fenster."
NUMBERS = [f"word{number}" for number in range(400)]


def cleaned(*texts, **keys):
    """The texts that are left, and the steps but those that did nothing."""
    cleaner = Cleaner(Clean(**(NOTHING | keys)))
    left = [cleaner.text(text, f"line {number}") for number, text in enumerate(texts, 1)]
    return [text for text in left if text is not None], [
        step for step in cleaner.steps() if step.changed + step.dropped
    ]


def names(**keys):
    return [step.step for step in Cleaner(Clean(**keys)).steps()]


# --- The steps -----------------------------------------------------------------------------------------------------


def test_the_steps_that_are_switched_on_stand_in_the_order_they_are_taken():
    assert names() == ["control characters", "empty", "overlap with valid or test", "duplicates"]
    assert names(**NOTHING) == ["empty"]
    assert names(
        unicode="NFC", html=True, languages=("en",), min_chars=1, max_chars=9, max_repetition=0.5,
        duplicates="near", test_overlap="near",
    ) == [
        "html", "control characters", "unicode", "empty", "too short", "too long", "repetition", "language",
        "overlap with valid or test", "near overlap with valid or test", "duplicates", "near duplicates",
    ]  # fmt: skip


def test_steps_that_did_nothing_are_reported_with_zeros():
    assert Cleaner(Clean()).steps()[0] == Step("control characters", 0, 0, ())


def test_a_document_is_counted_once_by_the_first_step_that_drops_it():
    left, steps = cleaned("<p>a</p>", "<b>  </b>", "<p>aaaa", html=True, min_chars=2, duplicates="exact")
    assert left == ["aaaa"]
    assert steps == [
        Step("html", 3, 0, ()),
        Step("empty", 0, 1, ("line 2",)),
        Step("too short", 0, 1, ("line 1",)),
    ]


def test_the_first_ten_places_are_named():
    _, (step,) = cleaned(*["same"] * 14, duplicates="exact")
    assert step == Step("duplicates", 0, 13, tuple(f"line {number}" for number in range(2, 12)))


@pytest.mark.parametrize("text", ["", " \n\t\u00a0", "\x00\ufeff"])
def test_a_document_without_text_is_dropped(text):
    cleaner = Cleaner(Clean())
    assert cleaner.text(text, "line 1") is None
    assert cleaner.empty == 1


ANY = st.text(st.characters(exclude_categories=()), max_size=30)  # surrogates too
AWKWARD = st.text(st.sampled_from("ae \u0301\u0327\r\n\x00\x0b\x0c\x85\ufeff\ud800\u1100\u1161ﬁ"), max_size=12)


@settings(deadline=None, max_examples=300)
@given(ANY | AWKWARD, st.sampled_from([None, "NFC", "NFKC"]))
def test_cleaning_a_cleaned_text_changes_nothing(text, form):
    cleaner = Cleaner(Clean(unicode=form, duplicates="keep"))
    once = cleaner.text(text, "line 1")
    if once is not None:
        before = cleaner.steps()
        assert cleaner.text(once, "line 1") == once
        assert cleaner.steps() == before
        once.encode()


# --- Characters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc\rd", "a\tb\nc\rd"),
        ("a\r\nb\r\r\nc", "a\nb\nc"),
        ("one\x0cpage\x0b\x85", "one\npage\n\n"),
        ("a\x00b\x1b[0m\x7f\x9f", "ab[0m"),
        ("\ufeffa\ufeff", "a"),
        ("a\ud83db", "ab"),
        ("\u0915\u094d\u200d\u0937 \u200fabc\u00ad", "\u0915\u094d\u200d\u0937 \u200fabc\u00ad"),
        ("e\x00\u0301", "e\u0301"),
    ],
)
def test_control_characters(text, expected):
    assert without_control(text) == expected


@given(ANY)
def test_nothing_but_control_characters_is_lost(text):
    left = [sign for sign in without_control(text) if sign != "\n"]
    gone = {"Cc", "Cs"}
    kept = [s for s in text if s in "\t\r" or (unicodedata.category(s) not in gone and s != "\ufeff")]
    assert [s for s in left if s != "\r"] == [s for s in kept if s != "\r"]


def test_control_characters_stay_where_the_step_is_off():
    assert cleaned("a\x00\r\nb") == (["a\x00\r\nb"], [])


def test_unicode():
    left, steps = cleaned("e\u0301", "ﬁ", "e", unicode="NFC")
    assert (left, steps) == (["é", "ﬁ", "e"], [Step("unicode", 1, 0, ())])
    assert cleaned("ﬁ \uff21", unicode="NFKC")[0] == ["fi A"]


def test_what_stood_around_a_control_character_is_composed():
    assert cleaned("e\x00\u0301", control=True, unicode="NFC")[0] == ["é"]


# --- HTML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain  text\n\n with\tspace ", "plain  text\n\n with\tspace "),
        ("Tom &amp; Jerry\n\n&eacute;", "Tom & Jerry\n\né"),
        ("<p>one\n two</p><p>three <b>four</b>!</p>", "one two\nthree four!"),
        ("<p>one<p>two<br>three<br><br>four", "one\ntwo\nthree\n\nfour"),
        ("a <b>bold</b> word\n\nand a <i>second</i>\nparagraph", "a bold word\n\nand a second\nparagraph"),
        ("<ul>\n <li>a</li>\n <li> b </li>\n</ul>", "a\nb"),
        ("<table><tr><th>a</th><th>b</th></tr>\n<tr><td>1</td>\n<td>2</td></tr></table>", "a b\n1 2"),
        ("<p>so:</p><pre>def f():\n    return 1\n</pre><p>done", "so:\ndef f():\n    return 1\ndone"),
        ("<div>run <code>a\n  b</code> now</div>", "run a\n  b now"),
        (
            "<!DOCTYPE html><html><head><title>T</title><style>p {}</style><script>if (a < b) {}</script></head>"
            "<body><!-- no --><h1>Head</h1>text<noscript>no</noscript></body></html>",
            "Head\ntext",
        ),
        ("<head><meta charset=utf-8><body><p>head is not closed", "head is not closed"),
        ("<p>a<![if !IE]>b<![endif]>c<![odd[x]]>d", "abcd"),
        ("<?xml version='1.0'?><div>a&nbsp; b</div>", "a\u00a0 b"),
        ("a < b and c > d", "a < b and c > d"),
        ("<p>&lt;b&gt; is a tag", "<b> is a tag"),
        ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>", "漢"),
    ],
)
def test_html(text, expected):
    assert html_text(text) == expected


def test_html_that_nests_deeply():
    assert html_text("<div>" * 20_000 + "x") == "x"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["<", ">", "!", "[", "]", "-", "/", "?", "&", ";", "#", "p", "pre", "<p>", "</p>", "<!--", "<script>", " ", "\n", "a", "=", '"', "x1", "\ud800"]), max_size=14).map("".join))  # fmt: skip
def test_no_markup_is_refused(text):
    result = html_text(text)
    if "<" not in text and "&" not in text:
        assert result == text


def test_html_is_left_alone_where_it_is_not_asked_for():
    assert cleaned("<p>a</p>") == (["<p>a</p>"], [])


# --- What is dropped -----------------------------------------------------------------------------------------------


def test_length_counts_characters_after_cleaning():
    left, steps = cleaned("<p>ab</p>", "<p>abc</p>", "abcd", "äöüß!", html=True, min_chars=3, max_chars=4)
    assert left == ["abc", "abcd"]
    assert steps[1:] == [Step("too short", 0, 1, ("line 1",)), Step("too long", 0, 1, ("line 4",))]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("\n\n", 0),
        ("a\nb\nc", 0),
        ("ab\nab", 0.5),
        ("ab\n\n  ab \ncd\n\n", 2 / 6),
        ("a\na\na\na\nbcdef", 3 / 9),
    ],
)
def test_repetition(text, share):
    assert repetition(text) == pytest.approx(share)


def test_documents_that_repeat_themselves_are_dropped():
    left, steps = cleaned("ab\nab", "ab\nab\nab", "ab", max_repetition=0.5)
    assert left == ["ab\nab", "ab"]
    assert steps == [Step("repetition", 0, 1, ("line 2",))]


def test_language():
    left, steps = cleaned(ENGLISH, GERMAN, "Kurz.", "1234 5678 9012 3456 7890 1234", languages=("en", "fr"))
    assert left == [ENGLISH, "Kurz.", "1234 5678 9012 3456 7890 1234"]
    assert steps == [Step("language", 0, 1, ("line 2",))]


def test_language_of():
    assert (language_of(ENGLISH), language_of(GERMAN)) == ("en", "de")
    assert language_of("the quick brown fox jump 12") is not None
    assert language_of("the quick brown fox jum 123") is None
    assert language_of(ENGLISH * 30 + GERMAN * 1000) == "en", "by its beginning"


def test_unknown_languages():
    assert unknown_languages(["en", "english", "de", "xx"]) == ("english", "xx")


# --- What is repeated ----------------------------------------------------------------------------------------------


def test_duplicates_within_train():
    texts = ["A text.", "a  TEXT.", "Another.", "A text"]
    assert cleaned(*texts, duplicates="exact") == (
        ["A text.", "Another.", "A text"],
        [Step("duplicates", 0, 1, ("line 2",))],
    )
    assert cleaned(*texts)[0] == texts


def varied(share, count=200):
    """``count`` words, of which the last ones are others: a Jaccard similarity of ``share`` to those of varied(1)."""
    same = round(2 * count * share / (1 + share))
    return " ".join(NUMBERS[:same] + [f"other{number}" for number in range(count - same)])


def test_near_duplicates():
    texts = [varied(1), varied(0.92), varied(0.65), varied(1).upper(), varied(0.3)]
    left, steps = cleaned(*texts, duplicates="near")
    assert left == [varied(1), varied(0.65), varied(0.3)]
    assert steps == [Step("duplicates", 0, 1, ("line 4",)), Step("near duplicates", 0, 1, ("line 2",))]
    assert len(cleaned(*texts, duplicates="exact")[0]) == 4


def test_of_few_words_only_equal_ones_are_duplicates():
    assert len(cleaned("one two three four", "one, two, three, four!", duplicates="near")[0]) == 2


def test_near_duplicates_are_found_as_often_as_is_said():
    """Different texts share words by chance, near ones have a similarity of 0.9 and 0.7."""
    drawn = random.Random(7)
    words = [f"w{number}" for number in range(3000)]
    seen, found = Seen(near=True), {0.9: 0, 0.7: 0}
    for _ in range(100):
        own = drawn.sample(words, 400)
        base = own[:200]
        assert seen.find(fingerprint(" ".join(base), near=True)) is None
        seen.add(fingerprint(" ".join(base), near=True))
        for share in found:
            same = round(400 * share / (1 + share))
            other = base[:same] + own[200 : 400 - same]
            drawn.shuffle(other)
            found[share] += seen.find(fingerprint(" ".join(other), near=True)) == "near"
    assert found == {0.9: 100, 0.7: 0}


@pytest.mark.parametrize("how", ["exact", "near"])
def test_overlap_is_dropped_from_train_only(how):
    cleaner = Cleaner(Clean(test_overlap=how, duplicates=how))
    for number in (1, 2):
        held = cleaner.text(varied(1), f"test {number}", held_out=True)
        assert held == varied(1), "twice in test, and dropped from neither"
        cleaner.hold_out(held)
    assert cleaner.text(varied(1).upper(), "train 1") is None
    near = cleaner.text(varied(0.92), "train 2")
    assert near == (None if how == "near" else varied(0.92))
    assert cleaner.text(varied(0.3), "train 3") == varied(0.3)
    assert cleaner.text(varied(0.3), "test 3", held_out=True) == varied(0.3), "what stands in train stays in test"
    steps = {step.step: step for step in cleaner.steps()}
    assert steps["overlap with valid or test"].rows == ("train 1",)
    assert steps["duplicates"].dropped == 0
    if how == "near":
        assert steps["near overlap with valid or test"].rows == ("train 2",)


def test_overlap_may_be_near_where_duplicates_are_exact():
    cleaner = Cleaner(Clean(test_overlap="near", duplicates="exact"))
    cleaner.hold_out(varied(1))
    texts = [varied(0.92), varied(0.3), varied(0.33)]
    assert [cleaner.text(text, "train") for text in texts] == [None, varied(0.3), varied(0.33)]


def test_overlap_may_stay():
    cleaner = Cleaner(Clean(test_overlap="keep"))
    cleaner.hold_out(ENGLISH)
    assert [cleaner.text(ENGLISH, "line 1"), cleaner.text(ENGLISH, "line 2")] == [ENGLISH, None]


def test_filters_hold_for_held_out_documents_too():
    cleaner = Cleaner(Clean(min_chars=3))
    assert cleaner.text("ab\x00", "test 1", held_out=True) is None
    assert cleaner.steps()[2] == Step("too short", 0, 1, ("test 1",))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["a", "A ", "b", "c c", "C  c", "d"])))
def test_the_first_of_equal_documents_stays(texts):
    first = {}
    for text in texts:
        first.setdefault(" ".join(text.lower().split()), text)
    assert cleaned(*texts, duplicates="exact")[0] == list(first.values())


@pytest.mark.parametrize("how", ["exact", "near"])
def test_texts_that_are_not_clean_are_compared_too(how):
    broken = "one two three \ud800 four five six"
    assert cleaned(broken, broken, duplicates=how)[0] == [broken]
