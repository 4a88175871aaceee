"""Hostile bytes and values out of a seeded generator: what a fuzzer changes in a sound file."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

BOMBS = (
    "(a+)+$",
    "(a|aa)+b",
    "(.*)*x",
    "((a*)*)*b",
    "(?:.|.)*z",
    r"(\w+\.)*\w+!",
    "(a{1,99}){1,99}{1,99}b",
    ".*.*.*.*.*.*.*.*x",
    "a{9999999}",
)
"""Expressions that backtrack without end."""

STRINGS = (
    *("", "\0", " ", "\n", "../../etc/passwd", "/etc/passwd", "~", "C:\\x", "a" * 3000, "." * 900, "\ud800", "\u202e", "²", "٣"),
    *("__class__", "os.system", "nan", "1e999", "None", "true", "all-linear", "*", "(", "[", "(?P<idx>.)", "a|b", "x{e}", "[[:alpha:]]"),
    *BOMBS,
)
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 2**64, 10**12, 10**400, -(10**400)),
    *(0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
)
DEEP: Any = json.loads("[" * 300 + "]" * 300)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], [1], ["a"], {"": None}, {"name": "os.system"}, {"a": {"b": [1]}}, DEEP)


class Mutator:
    """Changes sound things into hostile ones.

    Args:
        draw: the only source of chance.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def value(self) -> Any:
        """Any value that a JSON file may hold, and none that a reader hopes for."""
        return self.draw.choice(self.draw.choice((STRINGS, NUMBERS, OTHERS)))

    def tree(self, value: Any) -> Any:
        """The same plain data with something changed somewhere in it."""
        draw = self.draw
        if isinstance(value, dict) and value and draw.random() < 0.9:
            changed, key = dict(value), draw.choice(list(value))
            what = draw.random()
            if what < 0.75:
                changed[key] = self.tree(value[key]) if draw.random() < 0.5 else self.value()
            elif what < 0.85:
                del changed[key]
            else:
                changed[draw.choice(STRINGS)] = changed.pop(key) if draw.random() < 0.5 else self.value()
            return changed
        if isinstance(value, list) and value and draw.random() < 0.9:
            copied, place = list(value), draw.randrange(len(value))
            copied[place] = self.tree(value[place])
            # Only what holds nothing is made longer, or lists of lists would multiply.
            return copied if any(isinstance(item, list | dict) for item in copied) else copied * draw.choice((1, 1, 1, 50))
        return self.value()

    def flipped(self, data: bytes) -> bytes:
        """Bits flipped, pieces cut out, doubled or put in, the end torn off."""
        draw = self.draw
        held = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 5))):
            what, place = draw.randrange(6), draw.randrange(len(held) + 1)
            if what < 2 and held:
                held[min(place, len(held) - 1)] ^= 1 << draw.randrange(8)
            elif what == 2:
                del held[place:]
            elif what == 3:
                held[place:place] = draw.choice(
                    (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 400, b"{" * 400, b'"', b"\r\n", b"\t", b"9" * 40)
                )
            elif what == 4:
                del held[place : place + draw.randrange(1, 9)]
            else:
                end = min(len(held), place + draw.randrange(1, 40))
                held[place:place] = held[place:end]
        return bytes(held)


def header(modules: int, draw: random.Random) -> tuple[dict[str, Any], int]:
    """A sound header of a small adapter's weights, and how many bytes of data it speaks of."""
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for index in range(modules):
        rank = draw.choice((1, 2, 3))
        for which, shape in (("A", [rank, 4]), ("B", [3, rank])):
            size = 4 * shape[0] * shape[1]
            key = f"base_model.model.layers.{index}.fc.lora_{which}.weight"
            found[key] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
    return found, offset


def weights(draw: random.Random) -> bytes:
    """A safetensors file that something is wrong with: nine in ten are, in the header, the length, the data, or all."""
    mutator = Mutator(draw)
    head, size = header(draw.choice((1, 1, 2)), draw)
    for _ in range(draw.choice((0, 1, 1, 2))):
        head = mutator.tree(head)
    if draw.random() < 0.3:
        key = draw.choice(list(head)) if isinstance(head, dict) and head else ""
        if isinstance(head, dict) and isinstance(head.get(key), dict):
            numbers = draw.choice(([0, 2**62], [8, 4], [-4, 8], [0, 0], [4, size + 4], [2**64, 2**65]))
            shape = draw.choice(([2**40, 2**40], [-1, 8], [0], [], [2**63, 2], [1] * 300, [4, 3]))
            part = draw.choice(
                ({"data_offsets": numbers}, {"shape": shape}, {"dtype": draw.choice(("F64", "I32", "F8_E4M3", "C64", "F4", "x"))})
            )
            head[key] = {**head[key], **part}
    text = json.dumps(head).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        text = text.replace(b'{"', b'{"__metadata__": {}, "', 1)
    if draw.random() < 0.4:
        text = mutator.flipped(text)
    length = draw.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, len(text) + 1)) if draw.random() < 0.1 else len(text)
    body = draw.choice((b"\0\0\x80?", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", draw.randbytes(4))) * (size // 4)
    data = struct.pack("<Q", length) + text + body
    return mutator.flipped(data) if draw.random() < 0.1 else data
