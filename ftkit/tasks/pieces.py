"""The words of an answer while its tokens come: whole characters, nothing that is taken back, the same as at the end.

Joined, the pieces are what ``Chat.said`` makes of all tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ftkit.tasks.templates import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """``opening``: what the template makes each answer begin with, which is left out. ``stops``: texts that end it.

    ``trimmed``: without white space around it, as answers in a conversation are; else as the tokens have it. ``kept``:
    special tokens that are words of the answer all the same.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        opening: str = "",
        stops: Sequence[str] = (),
        trimmed: bool = True,
        kept: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._left_out = special_ids(tokenizer) - {*kept} if kept else None
        self._opening, self._stops, self._trimmed = opening.strip(), tuple(stops), trimmed
        self._ids: list[int] = []
        self._first = self._read = 0  # tokens that are decoded again for what joins them to the next; those read
        self._text, self._begun, self._given = "", False, 0
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that a token settles. ``stopped`` is true from the first of the stops on, which is left out."""
        self._ids.append(token)
        # Decoded with the tokens before: a tokenizer may begin a text with no space where it joins one with a space.
        before, now = self._decoded(self._first, self._read), self._decoded(self._first, len(self._ids))
        if len(now) > len(before) and not now.endswith(_UNFINISHED):
            self._first, self._read = self._read, len(self._ids)
            self._text += now[len(before) :]
        return self._settled(over=False)

    def end(self) -> str:
        """What was kept back, when no more tokens come."""
        if not self.stopped:
            before, now = self._decoded(self._first, self._read), self._decoded(self._first, len(self._ids))
            self._text += now[len(before) :]
        return self._settled(over=True)

    def _decoded(self, first: int, last: int) -> str:
        ids, skip = self._ids[first:last], self._left_out is None
        if self._left_out is not None:
            ids = [index for index in ids if index not in self._left_out]
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    def _settled(self, *, over: bool) -> str:
        if not self._begin(over=over):
            return ""
        if not self.stopped:
            self._stop()
        end = len(self._text)
        if not (over or self.stopped):
            end -= max((overlap(self._text, stop) for stop in self._stops), default=0)
        if self._trimmed:
            end = len(self._text[:end].rstrip())
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _begin(self, *, over: bool) -> bool:
        """Whether the answer's own words have begun; what stands before them is removed."""
        if self._begun or not self._trimmed:
            return True
        text = self._text.lstrip()
        if not over and (not text or (self._opening.startswith(text) and text != self._opening)):
            return False
        rest = text.removeprefix(self._opening).lstrip()
        if not rest and not over:
            return False
        self._text, self._begun = rest, True
        return True

    def _stop(self) -> None:
        """Cuts the text at the first stop. What was given holds none: its beginning would have been kept back."""
        found = [at for stop in self._stops if (at := self._text.find(stop, self._given)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may become the stop."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
