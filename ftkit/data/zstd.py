"""Files compressed with zstd, read as a stream of bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import MachineError

if TYPE_CHECKING:
    import zstandard

_PIECE = 4096  # compressed bytes at a time: 4 of them may unpack to 128 KiB, so 128 MiB are held at the very most
_LARGEST_WINDOW = 2**31  # what zstd --long=31 writes, as large public corpora have it; the library stops at 2**27


def open_zstd(path: Path, shown: str) -> io.BufferedReader:
    """The unpacked bytes of a .zst file of one or more frames.

    Reading raises OSError where the file is damaged and EOFError where it is cut off. Raises MachineError without the
    package zstandard.
    """
    try:
        import zstandard
    except ImportError as error:
        message = f"{shown} is compressed with zstd, which needs zstandard. Install it: pip install zstandard"
        raise MachineError(message) from error
    return io.BufferedReader(_Unpacked(path.open("rb"), zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)))


class _Unpacked(io.RawIOBase):
    # The package's own stream_reader ends without a word where a file is cut off in the middle of a frame.
    def __init__(self, file: io.BufferedReader, decompressor: zstandard.ZstdDecompressor) -> None:
        self._file = file
        self._decompressor = decompressor
        self._frame: zstandard.ZstdDecompressionObj | None = None  # None: between two frames
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._unpack():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def _unpack(self) -> bool:
        """Unpacks the next piece, which may give no byte yet; False at the end of the file."""
        import zstandard

        piece = self._packed or self._file.read(_PIECE)
        self._packed = b""
        if not piece:
            if self._frame is not None:
                raise EOFError("the compressed file ended before its end-of-stream marker was reached")
            return False
        frame = self._frame or self._decompressor.decompressobj()
        try:
            self._ready = memoryview(frame.decompress(piece))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._frame = None if frame.eof else frame
        self._packed = frame.unused_data if frame.eof else b""
        return True
