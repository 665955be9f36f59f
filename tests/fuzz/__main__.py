"""Fuzz the reader: `python -m tests.fuzz [FOLDER] [LIBFUZZER OPTIONS]`; needs atheris.

New files that reach new code go to FOLDER, out/fuzz unless it is given; `python -m tests.fuzz --take FOLDER` adds the
fewest of them that reach all of it to the corpus that the tests read. What fails is written to `crash-*` there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(
    include=["ilwp_plugin.format", "ilwp_plugin.strict_json"], enable_loader_override=False
):
    from tests.fuzz import mutation, target

MALFORMED = mutation.VALID.parent / "malformed"


def _mutant(data: bytes, most: int, seed: int) -> bytes:
    return mutation.mutant(data, most, Random(seed), atheris.Mutate)


def _sown() -> Path:
    """What fuzzing begins with: files of the grammar, valid files that are small, malformed ones."""
    folder = Path("out/fuzz-seeds")
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(mutation.begun_with(mutation.VALID.glob("*.ilwp"), MALFORMED.glob("*.ilwp"))):
        (folder / f"{number:04}").write_bytes(data)
    return folder


def _run(data: bytes) -> None:
    target.check(data)


def main(arguments: list[str]) -> None:
    if not any(argument.startswith("-merge_inner") for argument in arguments):  # else libFuzzer has called itself
        taken = arguments[:1] == ["--take"]
        arguments = arguments[taken:]
        folder = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else Path("out/fuzz")
        folder.mkdir(parents=True, exist_ok=True)
        mutation.CORPUS.mkdir(exist_ok=True)
        options = [f"-max_len={mutation.MOST}", "-timeout=20", "-rss_limit_mb=3000", f"-artifact_prefix={folder}/"]
        folders = [mutation.CORPUS, folder] if taken else [folder, mutation.CORPUS, _sown()]
        arguments = [*options, *(["-merge=1"] if taken else []), *arguments, *map(str, folders)]
    itself = f"{sys.executable} -m tests.fuzz"  # a line of the shell, by which libFuzzer calls itself
    atheris.Setup([itself, *arguments], _run, custom_mutator=_mutant)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
