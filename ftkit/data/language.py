"""Which language a text is in, by the model of the package py3langid (a naive Bayes model over byte sequences).

Lui and Baldwin (2012), langid.py: An Off-the-shelf Language Identification Tool.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Protocol

FEWEST_LETTERS = 20
_READ = 2000


class _Identifier(Protocol):
    @property
    def labels(self) -> list[str]: ...

    def classify(self, text: str) -> tuple[str, float]: ...


def language_of(text: str) -> str | None:
    """The language's code (ISO 639-1 where there is one; zxx: no language), by the first 2,000 characters.

    None where these hold fewer than 20 letters: nothing can be said of them. With 20 to 50 letters about one text in
    20 is taken for another language (measured on English docstrings), above that hardly any.
    """
    text = text[:_READ]
    if len(list(islice(filter(str.isalpha, text), FEWEST_LETTERS))) < FEWEST_LETTERS:
        return None
    return _identifier().classify(text)[0]


def unknown_languages(codes: Iterable[str]) -> tuple[str, ...]:
    """Those of ``codes`` that the model doesn't tell apart, in their order."""
    known = set(_identifier().labels)
    return tuple(code for code in codes if code not in known)


@cache
def _identifier() -> _Identifier:
    # One of our own: the package's shared one may be restricted to some languages by other code.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: _Identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return identifier
