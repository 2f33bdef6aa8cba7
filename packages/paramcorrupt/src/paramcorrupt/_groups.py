"""Groups of named tensors: every tensor, every module, or what patterns match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

Groups: TypeAlias = "str | Mapping[str, str | Sequence[str]] | Sequence[str]"

OTHER = "other"
"""The group of what no pattern matches."""

MODEL = "model"
"""The group of all tensors, where they are one."""

ROOT = "(root)"
"""The group of the tensors that belong to the model itself, not to one of its modules."""

_RULE = "'tensor', 'module', 'model', or a mapping or sequence of patterns"


def groups(names: Sequence[str], spec: Groups) -> dict[str, list[str]]:
    """The names of each group, which are in order. No group is empty.

    Args:
        names: names of tensors, such as `layer1.0.conv1.weight`.
        spec: "tensor", "module" (what precedes the last dot), "model" (all are one group), a sequence of `fnmatch`
            patterns, each of which is the name of its group, or a mapping from names of groups to one or several
            patterns. The first pattern that matches a name takes it, and the group "other" has the rest.

    Raises:
        TypeError, ValueError: `spec` is something else, has no pattern, or none of its patterns matches a name.
    """
    if isinstance(spec, str):
        return _by_name(names, spec)
    patterns = _patterns(spec)
    found: dict[str, list[str]] = {group: [] for group, _ in patterns}
    rest: list[str] = []
    for name in names:
        group = next((group for group, pattern in patterns if fnmatchcase(name, pattern)), None)
        (rest if group is None else found[group]).append(name)
    if names and len(rest) == len(names):
        tried = ", ".join(repr(pattern) for _, pattern in patterns)
        raise ValueError(
            f"groups must match the name of a tensor, such as {names[0]!r}, got {tried};"
            " '*attn*' matches any name with 'attn' in it"
        )
    if rest:
        found.setdefault(OTHER, []).extend(rest)
    return {group: members for group, members in found.items() if members}


def _by_name(names: Sequence[str], spec: str) -> dict[str, list[str]]:
    if spec not in ("tensor", "module", MODEL):
        raise ValueError(f"groups must be {_RULE}, got {spec!r}")
    if spec == MODEL:
        return {MODEL: list(names)} if names else {}
    found: dict[str, list[str]] = {}
    for name in names:
        module, dot, _ = name.rpartition(".")
        group = name if spec == "tensor" else module if dot else ROOT
        found.setdefault(group, []).append(name)
    return found


def _patterns(spec: object) -> list[tuple[str, str]]:
    """Pairs of a group and a pattern, in the order in which they are tried."""
    if isinstance(spec, Mapping):
        pairs: list[tuple[Any, Any]] = [(group, pattern) for group, value in spec.items() for pattern in _listed(value)]
    elif isinstance(spec, Sequence) and not isinstance(spec, bytes):
        pairs = [(pattern, pattern) for pattern in spec]
    else:
        raise TypeError(f"groups must be {_RULE}, got {spec!r}")
    for pair in pairs:
        for text in pair:
            if not isinstance(text, str):
                raise TypeError(f"groups must have names and patterns that are strings, got {text!r}")
    if not pairs:
        raise ValueError(f"groups must have at least one pattern, got {spec!r}")
    return pairs


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
