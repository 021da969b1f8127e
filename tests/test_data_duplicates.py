"""Equal and nearly equal rows: none reported falsely, hardly any missed."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data.duplicates import NEAR, exact_matches, near_matches, normalised, same_texts
from ftkit.records import Example


def examples(*texts):
    return [Example(f"a:{number}", f"a line {number}", text, ("x",)) for number, text in enumerate(texts, 1)]


def near(text, other):
    return [match.similarity for match in near_matches(examples(text), examples(other))]


@pytest.mark.parametrize(
    "text", ["Straße  \n1", "STRASSE 1", "\uff53\uff54\uff52\uff41\uff53\uff53\uff45\u00a01", "strasse 1"]
)
def test_case_width_and_white_space_do_not_count(text):
    assert normalised(text) == "strasse 1"


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_is_the_long_way(text):
    assert normalised(text) == normalised(text + " é").removesuffix("é").rstrip()


def test_same_texts():
    rows = examples("a", "b", "A ", "c", "B", "a")
    assert [[row.id for row in group] for group in same_texts(rows)] == [["a:1", "a:3", "a:6"], ["a:2", "a:5"]]


def test_exact_matches_name_the_first_row():
    (match,) = exact_matches(examples("Good.", "bad"), examples("x", "good.", "GOOD."))
    assert (match.row.id, match.other.id, match.exact) == ("a:1", "a:2", True)


@pytest.mark.parametrize(
    ("text", "other", "similarity"),
    [
        ("The film was a very good one, I think.", "the film was a very good one I think!!", 1.0),
        (
            "one two three four five six seven eight nine ten",
            "one two three four five six seven eight nine zehn",
            9 / 11,
        ),
        ("one two three four five", "one two three four five six", 5 / 6),
        ("这部电影非常好看我很喜欢", "这部电影非常好看我很喜欢它", 12 / 13),
    ],
)
def test_nearly_the_same(text, other, similarity):
    assert near(text, other) == [pytest.approx(similarity)]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("one two three four", "one two three four"),
        ("one two three four five six", "one two three four neun zehn"),
        ("a good film", "a good film!"),
        ("one two three four five", "one two three four"),
    ],
)
def test_not_nearly_the_same(text, other):
    """Below the threshold, or too short to be compared."""
    assert near(text, other) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(0, 11), min_size=5), min_size=1, max_size=15), st.data())
def test_every_match_is_verified(sets, data):
    """What is reported has the similarity that is reported, and it is at least the threshold."""
    others = data.draw(st.lists(st.sampled_from(sets) | st.sets(st.integers(0, 11), min_size=5), max_size=15))
    rows, train = (examples(*(" ".join(map(str, sorted(own))) for own in part)) for part in (sets, others))
    for match in near_matches(rows, train):
        one, other = set(match.row.text.split()), set(match.other.text.split())
        assert match.similarity == len(one & other) / len(one | other) >= NEAR


def test_hardly_any_pair_is_missed():
    """One word of fifteen changed: all 300 found, the first of two equal rows named, in the rows' order."""
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(5_000)}" for _ in range(15)) for _ in range(300)]
    changed = [text.rsplit(" ", 1)[0] + " other" for text in texts]
    matches = near_matches(examples(*changed), examples(*texts, *texts))
    assert (
        [match.row.id for match in matches]
        == [match.other.id for match in matches]
        == [f"a:{i}" for i in range(1, 301)]
    )
