"""Valid files of every kind of section at random: what the fuzzer starts from, and goes back to."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin import format as ilwp
from ilwp_plugin.format.coding import AUTO
from ilwp_plugin.format.dtypes import DTYPES, cast

REAL = ("float32", "float16", "bfloat16", "float64")
CODINGS = (AUTO, "huffman", "ans", "lzma", "ans-classes")


class Grammar:
    """Makes one file; every choice is drawn from a `Random`."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.numbers = np.random.RandomState(random.getrandbits(32))
        self.infos: list[ilwp.TensorInfo] = []
        self.untouched: dict[str, NDArray[Any]] = {}
        self.sections: list[ilwp.Section] = []

    def build(self) -> bytes:
        """The file."""
        makers: list[Callable[[], None]] = [
            self.raw,
            self.chain,
            self.pruned_chain,
            self.grid,
            self.rows,
            self.norms,
            self.sparse,
            self.fields,
            self.floats,
            self.codebook,
            self.arranged,
            self.dithered,
            self.graph,
            self.metadata,
            self.unknown,
        ]
        for make in self.random.sample(makers, self.random.choice([1, 1, 1, 2, 3])):
            make()
        self.alias()
        raws = ilwp.RawSection.split(self.infos, self.untouched)
        return b"".join(ilwp.pack(self.infos, [*self.sections, *raws]))

    def name(self) -> str:
        """A new one."""
        words = ["".join(self.random.choices(string.ascii_lowercase + "äé☃", k=self.random.randint(1, 3)))]
        words += [str(len(self.infos)), self.random.choice(["weight", "bias", "w"])]
        return ".".join(words)

    def info(self, shape: Sequence[int], dtype: str = "float32", storage: Any = "coded", name: str = "") -> Any:
        self.infos.append(ilwp.TensorInfo(name or self.name(), dtype, tuple(shape), storage))
        return self.infos[-1]

    def shape(self, least: int = 1) -> tuple[int, ...]:
        return tuple(self.random.randint(least, 4) for _ in range(self.random.randint(0, 4)))

    def dtype(self) -> str:
        return self.random.choice(REAL)

    def coding(self) -> str:
        return self.random.choice(CODINGS)

    def codes(self, shape: Sequence[int], largest: int) -> NDArray[np.int16]:
        spread = largest / self.random.choice([1, 3, 10])
        return np.asarray(np.rint(self.numbers.standard_normal(shape) * spread).clip(-largest, largest), np.int16)

    def scale(self, count: int | None = None) -> Any:
        return np.exp2(self.numbers.randint(-12, 3, () if count is None else count)).astype(np.float32)

    def bits(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """Any values of a dtype."""
        found = DTYPES[dtype]
        count = int(np.prod(shape, dtype=np.int64)) * found.itemsize
        drawn = self.numbers.randint(0, 2 if found.kind == "bool" else 256, count).astype(np.uint8)
        return drawn.view(found.carrier).reshape(tuple(shape))

    def floats_of(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        return cast(self.numbers.standard_normal(tuple(shape)).astype(np.float32), dtype)

    # --- sections

    def raw(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            dtype = self.random.choice(list(DTYPES))
            info = self.info(self.shape(0), dtype, "raw")
            self.untouched[info.name] = self.bits(info.shape, dtype)

    def chain(self, origins: list[ilwp.Origin] | None = None) -> None:
        size = self.random.choice([(1, 1), (2, 1), (1, 3), (2, 2), (3, 3)])
        taps = size[0] * size[1]
        counts = [self.random.randint(1, 5) for _ in range(self.random.randint(1, 4))]
        if origins is not None:
            counts = [len(origin.survivors) for origin in origins]
        starts = np.cumsum([0, *counts])
        anchor_dtype = self.random.choice([None, "float32", "float16", "bfloat16"])
        anchor = None if anchor_dtype is None else self.floats_of((counts[0], taps), anchor_dtype)
        layers = []
        for i, count in enumerate(counts):
            kernels = [count, 1] if self.random.random() < 0.8 else [1, count]
            info = self.info([*(kernels if origins is None else [count, 1]), *size], self.dtype())
            if i == 0 and anchor is not None:
                layers.append(ilwp.CodedLayer(info, None, "none"))
                continue
            modes = ["none", "collocated", "local", "full"] if i else ["none"]
            if i and counts[i - 1] == 1:
                modes.remove("local")
            mode = "ancestral" if i and origins is not None else self.random.choice(modes)
            references = np.full(count, -1, np.int64)
            if mode == "collocated":
                references = starts[i - 1] + np.arange(count) % counts[i - 1]
            elif mode == "local":
                references = starts[i - 1] + self.numbers.randint(0, counts[i - 1], count)
            elif mode == "full":
                references = self.numbers.randint(-1, starts[i], count).astype(np.int64)
            elif mode == "ancestral" and origins is not None:
                references = ilwp.ancestral_references(origins)[i]
            bits = self.random.randint(2, 15)
            codes = self.codes((count, taps), (1 << (bits - 1)) - 1)
            zeros = None
            if self.random.random() < 0.3 and codes.size > 1:
                zeros = self.numbers.random_sample(codes.shape) < 0.5
                zeros.reshape(-1)[:2] = True, False
                codes[zeros] = 0
            step = float(self.scale() / np.float32(1 << bits))
            quantized = ilwp.QuantizedLayer(codes, step, bits, references.astype(np.int64), zeros)
            layers.append(ilwp.CodedLayer(info, quantized, mode))  # type: ignore[arg-type]
        self.sections.append(ilwp.ChainSection(size, anchor, anchor_dtype, layers, self.coding()))

    def pruned_chain(self) -> None:
        channels = self.random.randint(2, 6)
        origins = []
        for _ in range(self.random.randint(2, 4)):
            left = self.random.sample(range(channels), self.random.randint(1, channels - 1))
            origins.append(ilwp.Origin(np.array(left if self.random.random() < 0.5 else sorted(left)), channels))
        first = len(self.infos)
        self.name = lambda: f"p{len(self.infos)}.weight"  # type: ignore[method-assign]
        self.chain(origins)
        del self.name
        names = [info.name for info in self.infos[first:]]
        self.sections.insert(-1, ilwp.StructureSection(dict(zip(names, origins, strict=True))))

    def grid(self) -> None:
        infos, values = [], []
        for _ in range(self.random.randint(1, 4)):
            shape = self.random.choice([self.shape(), (self.random.randint(1, 4), 1, 2, 2)])
            long = [axis for axis, size in enumerate(shape) if size > 1]
            axis = self.random.choice(long) if long and self.random.random() < 0.4 else None
            count = None if axis is None else shape[axis]
            points = None if self.random.random() < 0.7 else self.numbers.randint(-200, 200, count or 1)
            codes = self.codes(shape, self.random.choice([1, 7, 127, 3000]))
            dtype = self.dtype()
            if dtype == "float16":
                codes = np.minimum(codes, 127)
            infos.append(self.info(shape, dtype))
            values.append(ilwp.IntegerTensor(codes, self.scale(count), points, axis or 0))
        self.sections.append(ilwp.GridSection(infos, values, self.coding()))

    def rows(self) -> None:
        """Some rows of which some are empty, so that they are of two classes of blocks."""
        shape = (self.random.randint(4, 6), self.random.randint(96, 110))
        codes = self.codes(shape, 7)
        codes[:: self.random.randint(2, 3)] = 0
        value = ilwp.IntegerTensor(codes, self.scale())
        self.sections.append(ilwp.GridSection([self.info(shape)], [value], "ans-classes"))

    def norms(self) -> None:
        infos, values, mantissa = [], [], self.random.randint(1, 12)
        for _ in range(self.random.randint(1, 3)):
            channels, tracked, dtype = self.random.randint(1, 6), self.random.random() < 0.5, self.dtype()
            base = f"n{len(self.infos)}"
            own = [self.info((channels,), dtype, name=f"{base}.{role}") for role in ilwp.ROLES[:4]]
            if tracked:
                own.append(self.info((), "int64", name=f"{base}.{ilwp.ROLES[4]}"))
            infos.append(tuple(own))
            scale = self.numbers.randint(-(5 << mantissa), (5 << mantissa) + 1, channels)
            shift = self.numbers.randint(-4095, 4096, channels)
            eps = float(np.float32(self.random.choice([1e-5, 1e-3])))
            exponent = self.random.randint(-5, 5)
            values.append(ilwp.MergedBatchNorm(scale, shift, exponent, mantissa, float(self.scale()), eps))
        self.sections.append(ilwp.BatchNormSection(infos, values, self.coding()))

    def sparse(self) -> None:
        info = self.info((self.random.randint(2, 30),), self.dtype())
        dense = self.numbers.standard_normal(info.shape).astype(np.float32)
        dense[self.numbers.random_sample(info.shape) < self.random.choice([0.3, 0.9])] = 0
        dense[0] = 0
        self.sections.append(ilwp.SparseSection([info], {info.name: cast(dense, info.dtype)}))

    def fields(self) -> None:
        infos, values, bits = [], {}, {}
        for _ in range(self.random.randint(1, 2)):
            dtype = self.random.choice(["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
            info = self.info((self.random.randint(1, 6),), dtype)
            infos.append(info)
            values[info.name], bits[info.name] = self.bits(info.shape, dtype), self.random.randint(1, 8)
        self.sections.append(ilwp.FieldSection(infos, values, bits, self.coding()))

    def floats(self) -> None:
        info = self.info((self.random.choice([3, 20, 120]),), self.dtype())
        values = self.floats_of(info.shape, info.dtype)
        self.sections.append(ilwp.FloatSection([info], {info.name: values}, self.coding()))

    def _books(self) -> list[NDArray[np.float32]]:
        widths = [self.random.choice([1, 2, 4]) for _ in range(self.random.randint(1, 2))]
        return [self.numbers.standard_normal((self.random.randint(1, 9), w)).astype(np.float32) for w in widths]

    def _indices(self, books: Sequence[NDArray[np.float32]]) -> ilwp.CodebookTensor:
        book = self.random.randrange(len(books))
        count = self.random.randint(1, 9)
        info = self.info((count, books[book].shape[1]), self.dtype())
        return ilwp.CodebookTensor(info, book, self.numbers.randint(0, len(books[book]), count))

    def codebook(self) -> None:
        books = self._books()
        tensors = [self._indices(books) for _ in range(self.random.randint(len(books), 3))]
        self.sections.append(ilwp.CodebookSection(books, tensors, self.coding()))

    def arranged(self) -> None:
        books = self._books()
        tensors: list[ilwp.ArrangedTensor] = []
        for number in range(self.random.randint(len(books), 4)):
            own = self._indices(books)
            form, common = (
                self.random.choice(["plain", "sparse", "collocated"]),
                self.random.randrange(len(books[own.book])),
            )
            if (form == "sparse" and bool((own.indices == common).all())) or (form == "collocated" and not number):
                form = "plain"
            longest, before = self.random.choice([1, 2, 7, 255]), self.random.randrange(max(1, number))
            tensors.append(ilwp.ArrangedTensor(own.info, own.book, own.indices, form, common, longest, before))  # type: ignore[arg-type]
        self.sections.append(ilwp.ArrangedSection(books, tensors, self.coding()))

    def dithered(self) -> None:
        low, count = self.random.randint(-9, 2), self.random.randint(1, 9)
        table = self.random.choice([None, self.numbers.standard_normal(count).astype(np.float32)])
        tensors = []
        for _ in range(self.random.randint(1, 3)):
            shape = (self.random.randint(1, 9), self.random.randint(1, 4))
            codes = self.numbers.randint(low, low + count, shape)
            stream = self.random.choice([0, 1, 1 << 40])
            tensors.append(ilwp.DitheredTensor(self.info(shape, self.dtype()), 0.25, stream, codes))
        lattice = ilwp.Lattice(self.random.getrandbits(64), low, table)
        self.sections.append(ilwp.DitheredSection(lattice, tensors, self.coding()))

    def graph(self) -> None:
        self.sections.append(ilwp.GraphSection(self.random.choice(["onnx", "x-1"]), self.random.randbytes(9) * 3))

    def metadata(self) -> None:
        leaf = self.random.choice([None, True, 1, -2.5, "ä", [], {}, [[1]], 1 << 63])
        self.sections.append(ilwp.MetadataSection({"a": leaf, "b": {"c": [leaf]}}))

    def unknown(self) -> None:
        section = ilwp.OpaqueSection(self.random.choice([14, 77, 1 << 20]), self.random.randbytes(3))
        self.sections.append(section)

    def alias(self) -> None:
        if self.infos and self.random.random() < 0.2:
            at = self.random.randrange(len(self.infos))
            info = self.infos[at]
            if info.storage != "alias":
                self.infos.append(ilwp.TensorInfo(self.name(), info.dtype, info.shape, "alias", at))


def make(seed: int) -> bytes:
    """The valid file of a number."""
    return Grammar(Random(seed)).build()
