"""A conversation with a run's model: its turns, what of them still fits the model, and the answer as it comes."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ftkit.answer import Answerer
from ftkit.records import Turn
from ftkit.tasks.chat import Unfit
from ftkit.tasks.decoding import Growing, Sampling, decode
from ftkit.tasks.pieces import Pieces


@dataclass(slots=True)
class Talk:
    """``turns``: all that was said, but what no longer fits. ``system``: what stands before them, None for nothing."""

    answerer: Answerer
    system: str | None
    temperature: float
    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str, *, dropped: Callable[[int], None], say: Callable[[str], None]) -> bool:
        """Says the answer to a message, piece by piece; returns whether it ended by itself.

        ``dropped`` is told how many turns were forgotten before it: the oldest, where the history leaves too little
        room for an answer. What an interrupted answer had said by then stays in the history; a message without any
        answer is forgotten. Raises Unfit, and forgets the message, where it holds a mark of the template or is too long
        alone.
        """
        self.turns.append(Turn("user", text))
        try:
            prompt, count = self._fitted()
        except Unfit:
            self.turns.pop()
            raise
        del self.turns[:count]
        if count:
            dropped(count)
        return self._answer(prompt, say)

    def _fitted(self) -> tuple[list[int], int]:
        """The prompt, and how many of the turns it leaves out so that the answer has its room."""
        limit, count = self.answerer.limit, 0
        while True:
            ids = self._prompt(count)
            last = count + 2 >= len(self.turns)
            if limit is None or len(ids) + (1 if last else self.answerer.max_new_tokens) <= limit:
                return ids, count
            if last:
                raise Unfit(f"{len(ids):,} tokens, and the model holds {limit:,} with the answer. Shorten it.")
            # A question goes with its answer.
            count += 2

    def _prompt(self, count: int) -> list[int]:
        system = () if self.system is None else (Turn("system", self.system),)
        return self.answerer.chat.prompt((*system, *self.turns[count:]))

    def _answer(self, prompt: list[int], say: Callable[[str], None]) -> bool:
        chat, limit = self.answerer.chat, self.answerer.limit
        pieces = Pieces(chat.tokenizer, opening=chat.opening)
        said: list[str] = []
        ended = False

        def told(piece: str) -> None:
            if piece:
                said.append(piece)
                say(piece)

        def take(token: int) -> bool:
            nonlocal ended
            ended = token in chat.stop_ids
            told("" if ended else pieces.add(token))
            return not ended

        most = self.answerer.max_new_tokens
        room = most if limit is None else min(most, limit - len(prompt))
        row = Growing(prompt, room, Sampling(self.temperature, seed=secrets.randbits(63)), take)
        try:
            decode(self.answerer.model, [row], limit=limit, pad_token_id=chat.pad_token_id)
            told(pieces.end())
        finally:
            if said:
                self.turns.append(Turn("assistant", "".join(said)))
            else:
                self.turns.pop()
        return ended


def new_talk(answerer: Answerer, system: str | None, temperature: float, max_new_tokens: int | None) -> Talk:
    """``max_new_tokens``: of an answer, None for those of the run's evaluation."""
    chosen = answerer if max_new_tokens is None else replace(answerer, max_new_tokens=max_new_tokens)
    return Talk(chosen, system, temperature)
