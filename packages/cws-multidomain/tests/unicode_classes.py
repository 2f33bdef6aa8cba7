"""Prints csrc/unicode_ranges.h from the properties that the `regex` module knows: `python unicode_classes.py > ...`."""

import regex

CLASSES = {
    "kControl": r"[\p{GCB=Control}--[\s\x1c-\x1f\x85]]",
    "kExtend": r"[\p{GCB=Extend}--\p{InCB=Extend}--\p{InCB=Linker}]",
    "kConjunctExtend": r"[\p{GCB=Extend}&&\p{InCB=Extend}]",
    "kLinker": r"[\p{GCB=Extend}&&\p{InCB=Linker}]",
    "kJoiner": r"\p{GCB=ZWJ}",
    "kFlag": r"\p{GCB=RI}",
    "kPrepend": r"\p{GCB=Prepend}",
    "kSpacingMark": r"\p{GCB=SpacingMark}",
    "kL": r"\p{GCB=L}",
    "kV": r"\p{GCB=V}",
    "kT": r"\p{GCB=T}",
    "kPictographic": r"\p{Extended_Pictographic}",
    "kConsonant": r"\p{InCB=Consonant}",
}


def ranges() -> list[tuple[int, int, str]]:
    """Code points from, to (inclusive), and their class."""
    found = []
    for name, pattern in CLASSES.items():
        matches = regex.compile(pattern, regex.V1).match
        first = None
        for c in range(0x110001):
            if c < 0x110000 and matches(chr(c)):
                first = c if first is None else first
            elif first is not None:
                found.append((first, c - 1, name))
                first = None
    return sorted(found)


def main() -> None:
    print('#pragma once\n\n#include "unicode.h"\n')
    print("// Written by tests/unicode_classes.py: first code point, number of them, class.\n")
    print("namespace cws {\n\ninline constexpr ClassRange kClassRanges[] = {")
    line = "    "
    for first, last, name in ranges():
        item = f"{{0x{first:X}, {last - first + 1}, {name}}}, "
        if len(line) + len(item) > 121:
            print(line.rstrip())
            line = "    "
        line += item
    print(line.rstrip().rstrip(",") + "};\n\n}  // namespace cws")


if __name__ == "__main__":
    main()
