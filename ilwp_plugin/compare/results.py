"""What was measured: JSON lines that are only ever appended to, from which every table and figure is built."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ilwp_plugin import strict_json
from ilwp_plugin.compare.config import LARGEST, Network
from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.paths import check_regular

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


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Size = Annotated[int, Field(ge=1, lt=1 << 63)]
Real = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Signed = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-6, allow_inf_nan=False)]


class _References(_Record):
    """What `analysis.ReferenceShares.to_dict` returns."""

    kernel_size: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)]
    layers: Annotated[list[str], Field(min_length=2)]
    shares: list[list[Share]]
    previous_layer_share: Share | None = None

    @model_validator(mode="after")
    def _square(self) -> _References:
        sizes = {len(self.shares), *map(len, self.shares)}
        if sizes != {len(self.layers)}:
            raise ValueError("shares: expected as many rows and columns as layers")
        return self


class _Distribution(_Record):
    """What `analysis.Distribution.to_dict` returns."""

    name: Literal["weights", "residuals"]
    count: Count
    edges: Annotated[list[Signed], Field(min_length=2)]
    density: list[Real]
    laplace_scale: Real
    laplace_entropy_bits: Signed | None = None

    @model_validator(mode="after")
    def _histogram(self) -> _Distribution:
        if len(self.edges) != len(self.density) + 1 or any(b <= a for a, b in itertools.pairwise(self.edges)):
            raise ValueError("edges: expected one more than densities, in rising order")
        if not max(self.density) > 0:
            raise ValueError("density: nothing but 0")
        return self


class _Analysis(_Record):
    references: _References | None = None
    distributions: tuple[_Distribution, _Distribution] | None = None


_ANALYSES: TypeAdapter[Any] = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}x[0-9]{1,4}$")], _Analysis])


def _analyses(value: dict[str, Any]) -> dict[str, Any]:
    """As they are, if they are what the figures can show."""
    _ANALYSES.validate_python(value)
    return value


_DEEPEST = 16
"""Levels of options within options."""


def _plain(value: Any, level: int = 0) -> Any:
    """JSON of moderate depth and numbers."""
    if level > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST} levels")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _plain(item, level + 1)
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ValueError("a number that is too large")
    return value


Analyses = Annotated[dict[str, Any], AfterValidator(_analyses)]
PlainOptions = Annotated[dict[str, Any], AfterValidator(_plain)]


class Usage(_Record):
    """What a piece of work took.

    Attributes:
        seconds: of wall-clock time.
        peak_bytes: by how much the memory of the process grew at most.
    """

    seconds: Real
    peak_bytes: Count


class Accuracy(_Record):
    """Right answers on the test images, and how they differ from those of the fp32 network, image by image.

    Attributes:
        images: how many.
        right: of the model restored from the file.
        fp32: right answers of the network before.
        worse: images that the network got right and the restored model does not.
        better: the other way round.
    """

    images: Size
    right: Count
    fp32: Count
    worse: Count
    better: Count

    @model_validator(mode="after")
    def _of_the_images(self) -> Accuracy:
        if max(self.right, self.fp32, self.worse + self.better) > self.images:
            raise ValueError(f"more answers than the {self.images} images")
        return self

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

    raw_bytes: Count
    raw_depthwise_bytes: Count
    file_bytes: Size
    depthwise_bytes: Count | None = None
    texture_bytes: Count | None = None
    non_texture_bytes: Count | None = None


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
    loss_weight: Real
    parameters: Count
    depthwise_parameters: Count
    images: Size
    right: Count
    analysis: Analyses
    versions: dict[str, str]

    @model_validator(mode="after")
    def _of_the_images(self) -> TrainingResult:
        if self.right > self.images:
            raise ValueError(f"more answers than the {self.images} images")
        return self

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
    options: PlainOptions
    loss_weight: Real
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


def parse_result(text: str | bytes, where: str) -> TrainingResult | MethodResult:
    """One line; `where` names it in messages. Raises FormatError."""
    try:
        strict_json.loads(text.decode() if isinstance(text, bytes) else text)  # no NaN, nothing twice
        return _RESULT.validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise FormatError(f"{where}: no result ({place}: {fault['msg']}); remove the line") from None
    except ValueError as error:
        raise FormatError(f"{where}: no result ({error}); remove the line") from None


def _lines(path: Path) -> Iterator[tuple[int, TrainingResult | MethodResult]]:
    """Each result, with where its line ends."""
    if not path.exists():
        return
    check_regular(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        yield end, parse_result(line, f"{path}, line {number}")
