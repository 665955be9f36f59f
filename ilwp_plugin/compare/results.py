"""What was measured: JSON lines that are only ever appended to, from which every table and figure is built."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ilwp_plugin.compare.config import Network
from ilwp_plugin.errors import FileError, FormatError

__all__ = [
    "FILE",
    "Accuracy",
    "MethodResult",
    "Result",
    "Sizes",
    "TrainingResult",
    "Usage",
    "append_results",
    "read_results",
]

FILE = "results.jsonl"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(_Record):
    """What a piece of work took.

    Attributes:
        seconds: of wall-clock time.
        peak_bytes: by how much the memory of the process grew at most.
    """

    seconds: float
    peak_bytes: int


class Accuracy(_Record):
    """Right answers on the test images, and how they differ from those of the fp32 network, image by image.

    Attributes:
        images: how many.
        right: of the model restored from the file.
        fp32: right answers of the network before.
        worse: images that the network got right and the restored model does not.
        better: the other way round.
    """

    images: int
    right: int
    fp32: int
    worse: int
    better: int

    @property
    def percent(self) -> float:
        """Accuracy in per cent."""
        return 100 * self.right / self.images

    @property
    def change(self) -> float:
        """Points gained or lost against fp32."""
        return 100 * (self.better - self.worse) / self.images

    @property
    def standard_error(self) -> float:
        """Of `change`, in points, for these images as a sample: that of a paired difference."""
        n, changed = self.images, self.better + self.worse
        return float(100 * max(changed - (self.better - self.worse) ** 2 / n, 0.0) ** 0.5 / n)


class Sizes(_Record):
    """Bytes; None where the file does not tell them apart.

    Attributes:
        raw_bytes, raw_depthwise_bytes: in the tool's raw integer form.
        file_bytes: on disk, everything counted.
        depthwise_bytes: of these the weights of depthwise layers, with their tables, steps, names; in a network without
            any, those of all convolutions with kernels larger than 1x1 (`zoo.scope_layers`).
        texture_bytes, non_texture_bytes: of these the residuals and the indices (terms of the paper).
    """

    raw_bytes: int
    raw_depthwise_bytes: int
    file_bytes: int
    depthwise_bytes: int | None = None
    texture_bytes: int | None = None
    non_texture_bytes: int | None = None


class TrainingResult(_Record):
    """A trained network.

    Attributes:
        key: of the task.
        loss_weight: of the inter-layer loss, as chosen.
        parameters, depthwise_parameters: how many; the second as in `Sizes`.
        analysis: by kernel size: `references` (Fig. 2, 3), `distributions` (Fig. 7); see `analysis`.
    """

    kind: Literal["training"] = "training"
    key: str
    network: Network
    loss_weight: float
    parameters: int
    depthwise_parameters: int
    images: int
    right: int
    analysis: dict[str, Any]
    versions: dict[str, str]

    @property
    def percent(self) -> float:
        """Accuracy in per cent."""
        return 100 * self.right / self.images


class MethodResult(_Record):
    """A network compressed by a method.

    Attributes:
        key: of the task.
        group: whose method it is.
        title: of the method with its options, and of the loss where the network was trained with it.
        loss_weight: of the inter-layer loss in the training of the network, as chosen; 0 without.
        compression, loading: what these took.
    """

    kind: Literal["method"] = "method"
    key: str
    network: Network
    method: str
    group: str
    title: str
    options: dict[str, Any]
    loss_weight: float
    sizes: Sizes
    accuracy: Accuracy
    compression: Usage
    loading: Usage
    versions: dict[str, str]


Result = Annotated[TrainingResult | MethodResult, Field(discriminator="kind")]
_RESULT: TypeAdapter[TrainingResult | MethodResult] = TypeAdapter(Result)


def read_results(folder: str | os.PathLike[str]) -> list[TrainingResult | MethodResult]:
    """What `stored_results` returns, of a folder that has to have some.

    Raises:
        FileError: there are none.
        FormatError: a line is no result.
    """
    if found := stored_results(folder):
        return found
    raise FileError(f"{Path(folder) / FILE}: no results; make some with `ilwp compare CONFIG -o {os.fspath(folder)}`")


def stored_results(folder: str | os.PathLike[str]) -> list[TrainingResult | MethodResult]:
    """The results of a folder, each task once, in an order that does not depend on when they came.

    A last line that a kill left unfinished is passed over; `append_results` cuts it off.

    Raises:
        FileError: they cannot be read.
        FormatError: a line is no result.
    """
    found = {result.key: result for _, result in _lines(Path(folder) / FILE)}
    return sorted(found.values(), key=lambda r: (r.kind, r.network.model_dump_json(), getattr(r, "title", ""), r.key))


def append_results(folder: str | os.PathLike[str], results: Iterable[TrainingResult | MethodResult]) -> None:
    """Add results that the folder does not have yet. Several processes may do so at one time."""
    path = Path(folder) / FILE
    with FileLock(path.with_suffix(".lock")):
        known, whole = set(), 0
        for whole, result in _lines(path):  # noqa: B007  (its last value is where whole lines end)
            known.add(result.key)
        new = {result.key: result for result in results if result.key not in known}
        try:
            with path.open("ab") as file:
                file.truncate(whole)
                file.writelines(result.model_dump_json().encode() + b"\n" for result in new.values())
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error


def parse_result(text: str | bytes) -> TrainingResult | MethodResult:
    """One line. Raises ValueError."""
    return _RESULT.validate_json(text)


def _lines(path: Path) -> Iterator[tuple[int, TrainingResult | MethodResult]]:
    """Each result, with where its line ends."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            result = parse_result(line)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise FormatError(f"{path}, line {number}: no result ({where}: {fault['msg']}); remove the line") from None
        yield end, result
