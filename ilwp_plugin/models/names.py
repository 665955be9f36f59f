"""Names of tensors under wrappers: `module.conv.weight`, `_orig_mod.conv.weight` and `conv.weight` are one tensor."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["translate"]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What (Distributed)DataParallel and AveragedModel, torch.compile, FSDP and activation checkpoints put into names."""


def translate(own: Iterable[str], stored: Iterable[str]) -> dict[str, str] | None:
    """The stored name of each own name, where the two sets are the same but for wrappers or one prefix.

    Args:
        own: names in a model.
        stored: names in a file.

    Returns:
        Stored names by own ones, each used once; None where the sets differ otherwise.

    >>> translate(["a.weight"], ["module.a.weight"])
    {'a.weight': 'module.a.weight'}
    >>> translate(["net.a", "net.b"], ["a", "b"])
    {'net.a': 'a', 'net.b': 'b'}
    """
    own, stored = list(own), list(stored)
    for simplify in (str, _bare):
        mine, theirs = ({simplify(name): name for name in names} for names in (own, stored))
        if len(mine) == len(theirs) == len(own) == len(stored):
            mine, theirs = _without_prefix(mine, theirs)
            if mine.keys() == theirs.keys():
                return {name: theirs[bare] for bare, name in mine.items()}
    return None


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _without_prefix(mine: dict[str, str], theirs: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The same without what all names of one side have more in front, up to a dot."""
    # What all names begin with leaves their order as it is, so the first ones tell it.
    first, second = min(mine, default=""), min(theirs, default="")
    prefix = max(first, second, key=len)[: abs(len(first) - len(second))]
    if not prefix.endswith("."):
        return mine, theirs
    longer = mine if len(first) > len(second) else theirs
    if all(name.startswith(prefix) for name in longer):
        short = {name.removeprefix(prefix): value for name, value in longer.items()}
        return (short, theirs) if longer is mine else (mine, short)
    return mine, theirs
