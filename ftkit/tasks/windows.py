"""Documents cut into pieces that fit the model, and pieces packed into windows.

A document is the sequence start, its tokens, end. A piece that continues another repeats one token of it as context, so
that every token but the first of the sequence is predicted exactly once: none is dropped, none counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.tasks.batches import Encoded
from ftkit.tasks.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.integer]

IGNORED = -100  # a label without a loss, as torch has it


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands around a document's tokens (None: nothing), and how long a piece may be.

    ``overlap``: tokens of a piece that the next one repeats: 1 where the next token is predicted. ``closed``: each
    piece has its own start and end, as encoders take them, not only the document.
    """

    max_length: int
    start: int | None
    end: int | None
    overlap: int = 1
    closed: bool = False

    @property
    def room(self) -> int:
        """Tokens of a piece beside those that each piece has of its own."""
        return self.max_length - ((self.start is not None) + (self.end is not None) if self.closed else 0)


class Pieces:
    """The pieces of all documents, in order: ``document``, ``begin`` (in its sequence) and ``length`` [n]."""

    def __init__(self, tokens: Tokens, layout: Layout) -> None:
        import numpy as np

        self.tokens, self.layout = tokens, layout
        around = 0 if layout.closed else (layout.start is not None) + (layout.end is not None)
        sizes = tokens.lengths + around  # of the sequences
        step = layout.room - layout.overlap
        counts = np.maximum(0, -(-(sizes - layout.overlap) // step))
        self.document = np.repeat(np.arange(len(tokens)), counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)
        self.begin = (np.arange(len(self.document)) - firsts) * step
        # Of all ids of a piece, those that its layout puts around it included.
        self.length = np.minimum(layout.room, sizes[self.document] - self.begin) + layout.max_length - layout.room

    def __len__(self) -> int:
        return len(self.document)

    def ids(self, piece: int) -> list[int]:
        """The token ids of a piece, with what its layout puts around them."""
        layout = self.layout
        found = self.tokens.of(int(self.document[piece]))
        start = [] if layout.start is None else [layout.start]
        end = [] if layout.end is None else [layout.end]
        begin, length = int(self.begin[piece]), int(self.length[piece])
        if layout.closed:
            return [*start, *found[begin : begin + length - len(start) - len(end)].tolist(), *end]
        shift = len(start)
        inside: list[int] = found[max(0, begin - shift) : max(0, begin + length - shift)].tolist()
        return [*(start if begin == 0 else []), *inside, *(end if begin + length > shift + len(found) else [])]

    def predicted(self) -> Integers:
        """Tokens of each piece that the next-token objective predicts [n]."""
        predicted: Integers = self.length - 1
        return predicted


class Windows:
    """Training rows: each window is one piece or, packed, several. Position ids start anew with each piece.

    ``input_ids``, ``labels`` (the ids themselves; the first of a piece has none before it and is ignored) and
    ``position_ids``, all of the same length.
    """

    def __init__(self, pieces: Pieces, *, packed: bool, chosen: Integers | None = None) -> None:
        import numpy as np

        self.pieces = pieces
        chosen = np.arange(len(pieces)) if chosen is None else chosen
        lengths = pieces.length[chosen]
        if packed:
            order, self._starts = pack(lengths.tolist(), pieces.layout.max_length)
            self._order = chosen[order]
        else:
            self._order, self._starts = chosen, np.arange(len(chosen) + 1)
        sums = np.concatenate([[0], np.cumsum(pieces.length[self._order])])
        self.lengths: list[int] = (sums[self._starts[1:]] - sums[self._starts[:-1]]).tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, window: int) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for piece in self.members(window):
            own = self.pieces.ids(piece)
            ids += own
            labels += [IGNORED, *own[1:]]
            positions += range(len(own))
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def members(self, window: int) -> list[int]:
        """The pieces of a window."""
        if not 0 <= window < len(self):
            raise IndexError(window)
        members: list[int] = self._order[self._starts[window] : self._starts[window + 1]].tolist()
        return members


def pack(lengths: Sequence[int], room: int) -> tuple[Integers, Integers]:
    """Best-fit decreasing: each piece, the longest first, goes into the fullest window that still has room for it.

    Returns the order of the pieces [n] and where each window starts in it [windows + 1]. At most 11/9 of the fewest
    windows possible, and four more (Johnson et al. 1974). Nothing is cut and nothing left out.
    """
    import numpy as np

    windows: list[list[int]] = []
    open_by_room: list[list[int]] = [[] for _ in range(room + 1)]
    open_rooms = 0  # bit r is set where a window has room for exactly r more tokens
    for piece in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[piece]
        fitting = open_rooms >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            window = open_by_room[left].pop()
            if not open_by_room[left]:
                open_rooms &= ~(1 << left)
            windows[window].append(piece)
        else:
            left, window = room, len(windows)
            windows.append([piece])
        rest = left - length
        if rest > 1:  # a piece has two tokens at least
            open_by_room[rest].append(window)
            open_rooms |= 1 << rest
    order = np.array([piece for window in windows for piece in window], dtype=np.int64)
    return order, np.concatenate([[0], np.cumsum([len(window) for window in windows], dtype=np.int64)])


def repeated(sources: Integers, sizes: Integers, weights: Sequence[float], *, seed: int) -> Integers:
    """Pieces of an epoch in which each source has its share of the tokens: numbers of pieces, some several times.

    ``sources`` [n]: the source of each piece; ``sizes`` [n]: its tokens. The source that its weight asks for least is
    passed over once, the others as often as their weights need, the last pass in part (whole pieces, by ``seed``).
    """
    import numpy as np

    totals = np.bincount(sources, weights=sizes, minlength=len(weights))
    passes = np.array(weights) / np.maximum(totals, 1)
    passes = passes / passes[totals > 0].min()
    chosen = []
    chance = np.random.default_rng(seed)
    for source, times in enumerate(passes):
        own = np.flatnonzero(sources == source)
        whole, part = int(times), times - int(times)
        shuffled = chance.permutation(own)
        target = round(part * totals[source])  # tokens, so that 2.9999999999 passes are three
        taken = shuffled[: int(np.searchsorted(np.cumsum(sizes[shuffled]), target, side="right"))]
        chosen += [np.tile(own, whole), taken]
    return np.concatenate(chosen)
