"""Collectives and loops in the text of a compiled program, HLO."""

import math
import re

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# An asynchronous collective has the shape of its result where it ends.
_COLLECTIVE = re.compile(
    rf"^ *(?:ROOT )?%\S+ = (.+?) ({'|'.join(KINDS)})(?:-done)?\(", re.MULTILINE
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_LOOP = re.compile(r' while\(.*?op_name="([^"]*)"')
_SCAN = re.compile(r"/while$")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of a program, and the bytes of their results on one device.

    What stands in the body of a loop counts once, so these are the numbers of one step of a scan.

    Returns:
      ``{kind: {"count": ..., "bytes": ...}}`` of the kinds that occur.
    """
    found: dict[str, dict[str, int]] = {}
    for shape, kind in _COLLECTIVE.findall(text):
        total = found.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += sum(_bytes(*array) for array in _ARRAY.findall(shape))
    return found


def has_scan(text: str) -> bool:
    """True if the outermost scan of the program is still a loop."""
    return any(name.count("/while") == 1 and _SCAN.search(name) for name in _LOOP.findall(text))


def other_loops(text: str) -> list[str]:
    """The operations that the compiler, or the program inside its scan, made loops of; sorted."""
    names = [name for name in _LOOP.findall(text) if not _SCAN.search(name)]
    return sorted(name.rpartition("/")[2] for name in names)


def _bytes(dtype: str, bits: str, dimensions: str) -> int:
    elements = math.prod(int(n) for n in dimensions.split(",") if n)
    return math.ceil(elements * (8 if dtype == "pred" else int(bits)) / 8)
