"""Pickles as Python 2 wrote them: protocol 2, its strings as such, NumPy's modules by their old names."""

from __future__ import annotations

import io
import pickle
import struct
from typing import ClassVar


class _Pickler(pickle._Pickler):  # type: ignore[name-defined] # the one in Python: it lets opcodes be chosen
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: bytes | str) -> None:
        raw = value.encode("ascii") if isinstance(value, str) else value
        short = len(raw) < 256
        self.write((b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw))) + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def dumps(content: object) -> bytes:
    """Pickle; str and bytes both become Python 2's str."""
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
