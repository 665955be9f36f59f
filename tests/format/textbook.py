"""Another reader, written from FORMAT.md alone: slow, literal, without a line of the package's own.

It shows that the page is enough, and what the fast reader is compared with. Values are little-endian bytes, row-major.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import lzma
import math
import struct
import zlib
from typing import Any

import numpy as np

F32 = np.float32
SIZES = [4, 2, 2, 8, 1, 1, 2, 4, 8, 1, 8, 16, 1, 1, 2, 4, 8, 1, 1, 1]
NAMES = ["float32", "float16", "bfloat16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"]
NAMES += ["complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]
NAMES += ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
REAL, SIGNED, UNSIGNED = {0, 1, 2, 3}, {5, 6, 7, 8}, {4, 14, 15, 16}


class Fault(Exception):
    """The file is not valid."""


def require(condition: object) -> None:
    if not condition:
        raise Fault


class Bytes:
    """A piece of a file, read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        require(n <= len(self.data) - self.at)
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def f32(self) -> float:
        return float(struct.unpack("<f", self.take(4))[0])

    def varint(self) -> int:
        value = 0
        for i in range(9):
            byte = self.u8()
            value |= (byte & 127) << 7 * i
            if byte < 128:
                require(byte or i == 0)
                return value
        raise Fault

    def signed(self) -> int:
        z = self.varint()
        return z // 2 if z % 2 == 0 else -(z + 1) // 2

    def end(self) -> None:
        require(self.at == len(self.data))


class Bits:
    """A bit string that begins where a piece stands; `close` goes on behind its last byte."""

    def __init__(self, piece: Bytes) -> None:
        self.piece, self.at = piece, 8 * piece.at

    def bit(self) -> int:
        require(self.at < 8 * len(self.piece.data))
        self.at += 1
        return self.piece.data[(self.at - 1) // 8] >> (7 - (self.at - 1) % 8) & 1

    def number(self, n: int) -> int:
        value = 0
        for _ in range(n):
            value = 2 * value + self.bit()
        return value

    def close(self) -> None:
        while self.at % 8:
            require(self.bit() == 0)
        self.piece.at = self.at // 8


def good_step(value: float) -> bool:
    return math.isfinite(value) and math.copysign(1, value) > 0


class Huffman:
    """A canonical code, from the lengths of symbols 0, 1, ..."""

    def __init__(self, lengths: list[int]) -> None:
        used = [length for length in lengths if length]
        require(used)
        require(used == [1] if len(used) == 1 else sum(1 << 16 - length for length in used) == 1 << 16)
        self.words: dict[tuple[int, int], int] = {}
        word = 0
        for length in range(1, 17):
            for symbol, own in enumerate(lengths):
                if own == length:
                    self.words[length, word] = symbol
                    word += 1
            word *= 2

    def symbol(self, bits: Bits) -> int:
        word = 0
        for length in range(1, 17):
            word = 2 * word + bits.bit()
            if (length, word) in self.words:
                return self.words[length, word]
        raise Fault


def span(piece: Bytes) -> tuple[int, int]:
    low, n = piece.signed(), piece.varint() + 1
    require(abs(low) <= 65536 and n <= 65536)
    return low, n


def huffman_table(piece: Bytes) -> tuple[int, Huffman]:
    low, n = span(piece)
    bits = Bits(piece)
    own = Huffman([bits.number(3) for _ in range(17)])
    lengths = [own.symbol(bits) for _ in range(n)]
    bits.close()
    require(lengths[0] and lengths[-1])
    return low, Huffman(lengths)


def huffman_payload(low: int, code: Huffman, payload: bytes, count: int) -> list[int]:
    require(count <= 8 * len(payload))
    piece = Bytes(payload)
    bits = Bits(piece)
    found = [low + code.symbol(bits) for _ in range(count)]
    bits.close()
    piece.end()
    return found


def ans_table(piece: Bytes) -> tuple[int, list[int]]:
    """The smallest symbol, and the probabilities."""
    low, n = span(piece)
    form = piece.u8()
    m, g = form // 16, form % 16
    require(m <= 4 and g <= 7)
    bits = Bits(piece)
    weights, level = [], 0
    for _ in range(n):
        zeros = 0
        while bits.bit() == 0:
            zeros += 1
            require(zeros <= 15)
        v = (1 << zeros + g | bits.number(zeros + g)) - (1 << g)
        level += v // 2 if v % 2 == 0 else -(v + 1) // 2
        require(0 <= level <= 32 << m)
        e, f = divmod(level - 1, 1 << m)
        weights.append(((1 << m) + f << e) if level else 0)
    bits.close()
    require(weights[0] and weights[-1])
    if n == 1:
        weights.append(0)
    n = len(weights)
    excess = max(0, max(weights).bit_length() - 38)
    weights = [w >> excess for w in weights]
    total = sum(weights)
    shares = [w * (2**24 - n) // total for w in weights]
    top = shares.index(max(shares))
    shares[top] += 2**24 - n - sum(shares)
    over = max(0, shares[top] + 1 - (2**24 - 2**17))
    shares[top] -= over
    shares[0 if top else 1] += over
    return low, [share + 1 for share in shares]


def ans_payload(low: int, p: list[int], payload: bytes, count: int) -> list[int]:
    require(count <= 1024 * len(payload))
    piece = Bytes(payload)
    streams = 4 if count >= 65536 else 1
    lengths = [piece.varint() for _ in range(streams - 1)]
    parts = [*(piece.take(n) for n in lengths)]
    parts += [piece.take(len(payload) - piece.at)]
    starts = [0]
    for share in p:
        starts.append(starts[-1] + share)
    found = []
    for i, stream in enumerate(parts):
        require(stream and stream[-1])
        stream += bytes(-len(stream) % 4)
        words = [int.from_bytes(stream[j : j + 4], "little") for j in range(0, len(stream), 4)]
        x = words.pop()
        if words:
            x = x << 32 | words.pop()
        for _ in range(count // streams + (i < count % streams)):
            q = x % 2**24
            s = bisect.bisect_right(starts, q) - 1
            x = x // 2**24 * p[s] + q - starts[s]
            if x < 2**32 and words:
                x = x << 32 | words.pop()
            found.append(low + s)
        require(x == 2**24 and not words)
    return found


def class_tables(piece: Bytes) -> list[tuple[int, list[int]]]:
    """Of each class; the span of one symbol has a second one among the probabilities."""
    c = piece.u8()
    require(1 <= c <= 64)
    tables, spans = [], 0
    for _ in range(c):
        _, n = span(Bytes(piece.data[piece.at :]))
        spans += n
        tables.append(ans_table(piece))
    require(spans <= 65536)
    return tables


def class_payload(tables: list[tuple[int, list[int]]], payload: bytes, counts: list[int]) -> list[int]:
    require(sum(counts) <= 1024 * len(payload))
    piece, c = Bytes(payload), len(tables)
    sizes: list[int] = []
    for count in counts:
        length = piece.varint()
        require(1 <= length <= count)
        require(len(sizes) + -(-count // length) <= 2**20)
        sizes += [min(length, count - at) for at in range(0, count, length)]
    order, classes = list(range(c)), []
    for place in indices(piece, len(sizes), c):
        order.insert(0, order.pop(place))
        classes.append(order[0])
    require(set(classes) == set(range(c)))
    lengths = [piece.varint() for _ in range(c - 1)]
    parts = [piece.take(length) for length in lengths]
    parts.append(piece.take(len(payload) - piece.at))
    symbols = []
    for number, ((low, p), part) in enumerate(zip(tables, parts, strict=True)):
        own = sum(size for size, other in zip(sizes, classes, strict=True) if other == number)
        symbols.append(iter(ans_payload(low, p, part, own)))
    return [next(symbols[number]) for size, number in zip(sizes, classes, strict=True) for _ in range(size)]


def unpacked(stream: bytes, most: int) -> bytes:
    """A raw LZMA2 stream, with its end marker, of at most so many bytes."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    try:
        content = unpacker.decompress(stream, most + 1)
        if not unpacker.eof:
            content += unpacker.decompress(b"", most + 1)
    except lzma.LZMAError:
        raise Fault from None
    require(len(content) <= most and unpacker.eof and not unpacker.unused_data)
    return content


def lzma_payload(centre: int, radix: int, payload: bytes, count: int) -> list[int]:
    require(count <= 65536 * len(payload))
    piece = Bytes(payload)
    first = piece.take(piece.varint())
    second = piece.take(len(payload) - piece.at)
    width = max(n for n in range(1, 9) if radix**n <= 256)
    packed = unpacked(first, count)
    require(len(packed) == math.ceil(count / width))
    rests = Bytes(unpacked(second, 3 * count) if second else b"")
    found: list[int] = []
    for byte in packed:
        require(byte < radix**width)
        for _ in range(width):
            digit, byte = byte % radix, byte // radix
            if len(found) == count:
                require(digit == 0)
                continue
            if digit == radix - 1:
                at = rests.at
                digit += rests.varint()
                require(rests.at - at <= 3)
            symbol = centre + (digit // 2 if digit % 2 == 0 else -(digit + 1) // 2)
            require(abs(symbol) <= 131071)
            found.append(symbol)
    rests.end()
    return found


def runs(piece: Bytes, counts: list[int]) -> list[list[int]]:
    """Section 4 of the page."""
    found: list[list[int]] = []
    while len(found) < len(counts):
        number, form = piece.varint(), piece.u8()
        require(1 <= number <= len(counts) - len(found))
        own = counts[len(found) : len(found) + number]
        coder, k = form % 32, form // 32
        require(coder in (1, 2, 3, 4))
        if coder == 3:
            centre, radix = piece.signed(), piece.varint()
            require(abs(centre) <= 131071 and 2 <= radix <= 256)
            codes = lzma_payload(centre, radix, piece.take(piece.varint()), sum(own))
        elif coder == 4:
            tables = class_tables(piece)
            codes = class_payload(tables, piece.take(piece.varint()), own)
        elif coder == 1:
            low, code = huffman_table(piece)
            codes = huffman_payload(low, code, piece.take(piece.varint()), sum(own))
        else:
            low, p = ans_table(piece)
            codes = ans_payload(low, p, piece.take(piece.varint()), sum(own))
        bits = Bits(piece)
        codes = [(code << k) + bits.number(k) for code in codes]
        bits.close()
        for count in own:
            found.append(codes[:count])
            codes = codes[count:]
    return found


def indices(piece: Bytes, n: int, bound: int) -> list[int]:
    method = piece.u8()
    require(method < 2)
    if method:
        low, code = huffman_table(piece)
        found = huffman_payload(low, code, piece.take(piece.varint()), n)
    else:
        bits = Bits(piece)
        found = [bits.number((bound - 1).bit_length()) for _ in range(n)]
        bits.close()
    require(all(0 <= index < bound for index in found))
    return found


def zero_map(piece: Bytes, n: int) -> list[int]:
    packed = indices(piece, (n + 7) // 8, 256)
    bits = [byte >> (7 - i) & 1 for byte in packed for i in range(8)]
    require(not any(bits[n:]))
    return bits[:n]


def converted(values: list[Any], dtype: int) -> bytes:
    """binary32 values in a real dtype; finite."""
    require(all(np.isfinite(v) for v in values))
    if dtype == 2:
        out = b""
        for v in values:
            bits = int(np.float32(v).view(np.uint32))
            low, high = bits & 0xFFFF, bits >> 16
            high += low > 0x8000 or (low == 0x8000 and high & 1)
            require(high & 0x7F80 != 0x7F80)
            out += struct.pack("<H", high)
        return out
    with np.errstate(over="ignore"):
        array = np.array(values, F32).astype({0: "<f4", 1: "<f2", 3: "<f8"}[dtype])
    require(np.isfinite(array).all())
    return array.tobytes()


class Tensor:
    def __init__(self, name: str, dtype: int, storage: int, shape: tuple[int, ...], alias: int | None) -> None:
        self.name, self.dtype, self.storage, self.shape, self.alias = name, dtype, storage, shape, alias
        self.size, self.values = math.prod(shape), b""
        self.owners = 0

    def give(self, values: bytes) -> None:
        require(len(values) == self.size * SIZES[self.dtype])
        self.values, self.owners = values, self.owners + 1


def directory(piece: Bytes) -> list[Tensor]:
    tensors: list[Tensor] = []
    known: list[str] = []
    before: list[str] = []
    shape: tuple[int, ...] = ()
    for number in range(piece.varint()):
        s, n = piece.varint(), piece.varint()
        require(s <= len(before))
        parts = before[:s]
        for _ in range(n):
            k = piece.varint()
            if k == 0:
                length = piece.varint()
                require(length <= 1024)
                try:
                    known.append(piece.take(length).decode())
                except UnicodeDecodeError:
                    raise Fault from None
                k = len(known)
            require(k <= len(known) and len(parts) < 1024)
            parts.append(known[k - 1])
        require(all(part and "." not in part for part in parts))
        name = ".".join(parts)
        require(1 <= len(name.encode()) <= 1024 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name))
        require(name not in [t.name for t in tensors])
        before = parts
        code = piece.u8()
        dtype, storage, same = code & 31, code >> 5 & 3, code >> 7
        require(dtype < 20 and storage < 3)
        if storage == 2:
            target = piece.varint()
            require(target < number and tensors[target].storage != 2 and tensors[target].dtype == dtype and not same)
            tensors.append(Tensor(name, dtype, 2, tensors[target].shape, target))
            continue
        if not same:
            rank = piece.varint()
            require(rank <= 64)
            shape = tuple(piece.varint() for _ in range(rank))
            require(math.prod(d for d in shape if d) <= 2**62)
        tensors.append(Tensor(name, dtype, storage, shape, None))
    return tensors


def read(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and values of every tensor. Raises Fault."""
    require(data[:8] == bytes.fromhex("89494C57500D0A1A") and len(data) > 33 and data[8] == 1)
    length = int.from_bytes(data[9:13], "little")
    packed, length = length >> 31, length & (2**31 - 1)
    require(length <= 2**28 and 13 + length + 4 + 16 <= len(data))
    require(zlib.crc32(data[: 13 + length]) == int.from_bytes(data[13 + length : 17 + length], "little"))
    require(hashlib.sha256(data[:-16]).digest()[:16] == data[-16:])
    header = Bytes(data[13 : 13 + length])
    if packed:
        size = header.varint()
        require(size <= 2**19)
        plain = Bytes(unpacked(header.take(header.varint()), size))
        require(len(plain.data) == size)
        tensors = directory(plain)
        plain.end()
    else:
        tensors = directory(header)
    table = []
    for _ in range(header.varint()):
        code, size = header.varint(), header.varint()
        table.append((code // 2, code % 2, size, int.from_bytes(header.take(4), "little")))
    header.end()
    body = Bytes(data[:-16])
    body.at = 17 + length
    raw = [t for t in tensors if t.storage == 0]
    raw.sort(key=lambda t: -SIZES[t.dtype])
    state: dict[str, Any] = {"raw": raw, "origins": None, "metadata": None}
    for kind, ancillary, size, crc in table:
        if size >= 2**18:
            require(not any(body.take(-body.at % 64)))
        content = body.take(size)
        require(zlib.crc32(content) == crc)
        if kind not in KINDS:
            require(ancillary)
            continue
        require(ancillary == (kind in (3, 10)))
        piece = Bytes(content)
        KINDS[kind](piece, tensors, state)
        piece.end()
    body.end()
    require(all(t.owners == 1 for t in tensors if t.storage != 2))
    for t in tensors:
        if t.alias is not None:
            t.values = tensors[t.alias].values
    return {t.name: (NAMES[t.dtype], t.shape, t.values) for t in tensors}


def coded(piece: Bytes, tensors: list[Tensor], dtypes: set[int]) -> Tensor:
    number = piece.varint()
    require(number < len(tensors))
    t = tensors[number]
    require(t.storage == 1 and t.dtype in dtypes and t.size)
    return t


def how_many(piece: Bytes, tensors: list[Tensor]) -> int:
    n = piece.varint()
    require(1 <= n <= len(tensors))
    return n


def raw_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    left = state["raw"]
    while left and (piece.at < len(piece.data) or not left[0].size):
        t = left.pop(0)
        values = piece.take(t.size * SIZES[t.dtype])
        require(t.dtype != 9 or set(values) <= {0, 1})
        t.give(values)


def chain_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    size = (piece.varint(), piece.varint())
    anchor = piece.u8()
    require(anchor < 4)
    layers: list[tuple[Tensor, int, int, float, int]] = []
    for i in range(how_many(piece, tensors)):
        t = coded(piece, tensors, REAL)
        require(len(t.shape) in (3, 4, 5) and (math.prod(t.shape[2:-1]), t.shape[-1]) == size)
        if i == 0 and anchor:
            layers.append((t, 0, 0, 0.0, 0))
            continue
        form, step = piece.u8(), piece.f32()
        bits, mode, mapped = form & 15, form >> 4 & 7, form >> 7
        require(bits >= 2 and mode <= 4 and good_step(step) and (i or mode == 0))
        layers.append((t, bits, mode, step, mapped))
    taps = size[0] * size[1]
    counts = [t.shape[0] * t.shape[1] for t, *_ in layers]
    restored: list[list[list[Any]]] = []
    if anchor:
        t = layers[0][0]
        width = {1: 4, 2: 2, 3: 2}[anchor]
        data = piece.take(t.size * width)
        if anchor == 3:
            values = [np.uint32(v << 16).view(F32) for v in struct.unpack(f"<{t.size}H", data)]
        else:
            values = [F32(v) for v in np.frombuffer(data, "<f4" if anchor == 1 else "<f2")]
        require(all(np.isfinite(v) for v in values))
        restored.append([values[j : j + taps] for j in range(0, t.size, taps)])
        t.give(converted(values, t.dtype))
    todo = layers[bool(anchor) :]
    maps = []
    for t, _, _, _, mapped in todo:
        maps.append(zero_map(piece, t.size) if mapped else None)
        require(not mapped or 0 < sum(maps[-1]) < t.size)
    codes = runs(piece, [t.size - sum(own or []) for (t, *_), own in zip(todo, maps, strict=True)])
    for number, ((t, bits, mode, step, _), own, zeros) in enumerate(zip(todo, codes, maps, strict=True), bool(anchor)):
        require(all(abs(code) <= (2 ** (bits - 1) - 1 if step else 0) for code in own))
        references = chain_references(piece, mode, number, counts, layers, state)
        queue, kernels = list(own), []
        with np.errstate(over="ignore", invalid="ignore"):
            for j in range(counts[number]):
                where = references[j]
                kernel = []
                for tap in range(taps):
                    zero = zeros[j * taps + tap] if zeros else 0
                    value = F32(F32(0 if zero else queue.pop(0)) * F32(step))
                    reference = F32(0) if where is None else restored[where[0]][where[1]][tap]
                    value = F32(value + reference)
                    kernel.append(F32(0) if zero else value)
                kernels.append(kernel)
        restored.append(kernels)
        t.give(converted([value for kernel in kernels for value in kernel], t.dtype))


def chain_references(
    piece: Bytes, mode: int, number: int, counts: list[int], layers: list[Any], state: dict[str, Any]
) -> list[tuple[int, int] | None]:
    n = counts[number]
    if mode == 0:
        return [None] * n
    before = counts[number - 1]
    if mode == 1:
        return [(number - 1, j % before) for j in range(n)]
    if mode == 2:
        require(before >= 2)
        return [(number - 1, v) for v in indices(piece, n, before)]
    if mode == 3:
        u, v = indices(piece, n, number + 1), indices(piece, n, max(counts[:number]))
        require(all(b < (counts[a - 1] if a else 1) for a, b in zip(u, v, strict=True)))
        return [(a - 1, b) if a else None for a, b in zip(u, v, strict=True)]
    known = state["origins"]
    require(known is not None and any(id(t) in known for t, *_ in layers))
    origins = []
    for (t, *_), count in zip(layers, counts, strict=True):
        origins.append(known.get(id(t), (list(range(count)), count)))
        require(len(origins[-1][0]) == count)
    found: list[tuple[int, int] | None] = []
    for j, o in enumerate(origins[number][0]):
        place = (number - 1, j % before)
        for up in range(number - 1, max(-1, number - 17), -1):
            survivors, channels = origins[up]
            o %= channels
            if o in survivors:
                place = (up, survivors.index(o))
                break
        found.append(place)
    return found


def depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(depth, inner)) if inner else 0


def metadata_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    require(state["metadata"] is None and len(piece.data) <= 2**20)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len({key for key, _ in items}) == len(items))
        return dict(items)

    def no(constant: str) -> None:
        raise Fault

    try:
        value = json.loads(piece.take(len(piece.data)).decode(), object_pairs_hook=pairs, parse_constant=no)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        raise Fault from None
    require(isinstance(value, dict) and depth(value) <= 16)
    stack = [value]
    while stack:
        item = stack.pop()
        require(isinstance(item, bool) or not isinstance(item, int) or abs(item) < 2**64)
        stack += list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
    state["metadata"] = value


def grid_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    heads: list[tuple[Tensor, int, int, list[float], list[int]]] = []
    for _ in range(how_many(piece, tensors)):
        t, flags = coded(piece, tensors, REAL), piece.u8()
        require(flags < 16 and flags & 9 != 9)
        axis = piece.varint() if flags & 1 else 0
        require(not flags & 1 or (axis < len(t.shape) and t.shape[axis] >= 2))
        n = t.shape[axis] if flags & 1 else 1
        if flags & 8:
            require(heads and not heads[-1][1] & 1)
            scales = heads[-1][3]
        else:
            scales = [piece.f32() for _ in range(n)]
            require(all(map(good_step, scales)))
        zeros = [piece.signed() for _ in range(n)] if flags & 2 else [0] * n
        require(all(abs(z) <= 32767 for z in zeros))
        heads.append((t, flags, axis, scales, zeros))
    latest: dict[tuple[int, ...], list[int]] = {}
    for (t, flags, axis, scales, zeros), codes in zip(heads, runs(piece, [h[0].size for h in heads]), strict=True):
        depthwise = len(t.shape) == 4 and t.shape[1] == 1 and t.shape[2] * t.shape[3] >= 2
        if flags & 4:
            require(depthwise and t.shape[2:] in latest)
            other = latest[t.shape[2:]]
            codes = [code + other[i % len(other)] for i, code in enumerate(codes)]
        if depthwise:
            latest[t.shape[2:]] = codes
        inner = math.prod(t.shape[axis + 1 :])
        values = []
        for i, code in enumerate(codes):
            which = i // inner % t.shape[axis] if flags & 1 else 0
            require(abs(code) <= 32767 and abs(code + zeros[which]) <= 32767)
            with np.errstate(over="ignore"):
                values.append(F32(F32(code) * F32(scales[which])))
        t.give(converted(values, t.dtype))


def norm_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    count, m = how_many(piece, tensors), piece.u8()
    require(1 <= m <= 12)
    norms: list[tuple[list[Tensor], float, int, float]] = []
    for _ in range(count):
        flags = piece.u8()
        require(flags < 8)
        n = 5 if flags & 1 else 4
        first = piece.varint()
        places = [first] + [piece.varint() if flags & 4 else first + i for i in range(1, n)]
        require(max(places) < len(tensors))
        own = [tensors[place] for place in places]
        shape = own[0].shape
        require(all(t.storage == 1 for t in own) and len(shape) == 1 and shape[0] >= 1)
        require(all(t.dtype in REAL and t.shape == shape for t in own[:4]))
        require(n == 4 or (own[4].dtype == 8 and own[4].shape == ()))
        require(norms or not flags & 2)
        eps = norms[-1][1] if flags & 2 else piece.f32()
        x, step = piece.signed(), piece.f32()
        require(0 <= eps < 1 and abs(x) <= 100 and good_step(step))
        norms.append((own, eps, x, step))
    sizes = [own[0].size for own, *_ in norms]
    scales, shifts = runs(piece, sizes), runs(piece, sizes)
    for (own, eps, x, step), scale, shift in zip(norms, scales, shifts, strict=True):
        weight, bias = [], []
        for code in scale:
            require(abs(code) <= 24 << m)
            e, f = divmod(abs(code) - 1, 1 << m)
            value = ((1 << m) + f) * 2.0 ** (e - m + x) if code else 0.0  # exact in binary64
            with np.errstate(over="ignore"):
                weight.append(F32(-value if code < 0 else value))
        with np.errstate(over="ignore"):
            bias = [F32(F32(code) * F32(step)) for code in shift]
        n = len(scale)
        for t, values in zip(own, [weight, bias, [F32(0)] * n, [F32(F32(1) - F32(eps))] * n], strict=False):
            t.give(converted(values, t.dtype))
        if len(own) == 5:
            own[4].give(bytes(8))


def structure_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    require(state["origins"] is None)
    origins: dict[int, tuple[list[int], int]] = {}
    for _ in range(piece.varint()):
        numbers = [piece.varint() for _ in range(how_many(piece, tensors))]
        require(numbers == sorted(set(numbers)) and numbers[-1] < len(tensors))
        own = [tensors[number] for number in numbers]
        require(all(t.storage != 2 and t.name.endswith(".weight") and t.shape for t in own))
        c, n = own[0].shape[0], piece.varint()
        require(1 <= c <= n <= 2**31 and all(t.shape[0] == c for t in own))
        form = piece.u8()
        require(form < 2)
        if form:
            survivors = indices(piece, c, n)
        else:
            bits = Bits(piece)
            survivors = [i for i in range(n) if bits.bit()]
            bits.close()
        require(len(survivors) == c == len(set(survivors)))
        for t in own:
            require(id(t) not in origins)
            origins[id(t)] = survivors, n
    state["origins"] = origins


def sparse_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    for _ in range(how_many(piece, tensors)):
        t = coded(piece, tensors, REAL)
        zeros = zero_map(piece, t.size)
        require(any(zeros))
        out = b""
        for zero in zeros:
            value = bytes(SIZES[t.dtype]) if zero else piece.take(SIZES[t.dtype])
            require(zero or any(value))
            out += value
        t.give(out)


def fields_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    heads = [(coded(piece, tensors, SIGNED | UNSIGNED), piece.u8()) for _ in range(how_many(piece, tensors))]
    require(all(1 <= n <= 8 for _, n in heads))
    counts = []
    for t, n in heads:
        v = 8 * SIZES[t.dtype]
        counts += [t.size * (v // n)] + ([t.size] if v % n else [])
    found = runs(piece, counts)
    for t, n in heads:
        v = 8 * SIZES[t.dtype]
        own = found.pop(0)
        rest = found.pop(0) if v % n else [0] * t.size
        require(all(0 <= f < 1 << n for f in own) and all(0 <= f < 1 << v % n for f in rest))
        out = b""
        for i in range(t.size):
            word = rest[i] << v // n * n
            for j in range(v // n):
                word |= own[i * (v // n) + j] << n * j
            out += word.to_bytes(v // 8, "little")
        t.give(out)


def floats_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    heads = [(coded(piece, tensors, REAL), piece.u8()) for _ in range(how_many(piece, tensors))]
    require(all(flags < 1 << SIZES[t.dtype] for t, flags in heads))
    planes: dict[tuple[int, int], Any] = {}
    for i, (t, flags) in enumerate(heads):
        for plane in range(SIZES[t.dtype]):
            if flags >> plane & 1:
                planes[i, plane] = piece.take(t.size)
    left = [(i, p) for p in range(8) for i, (t, flags) in enumerate(heads) if p < SIZES[t.dtype] and not flags >> p & 1]
    planes.update(zip(left, runs(piece, [heads[i][0].size for i, _ in left]), strict=True))
    require(all(0 <= byte < 256 for plane in planes.values() for byte in plane))
    for i, (t, _) in enumerate(heads):
        width, out = SIZES[t.dtype], b""
        for j in range(t.size):
            turned = int.from_bytes(bytes(planes[i, plane][j] for plane in range(width)), "big")
            out += (turned >> 1 | (turned & 1) << 8 * width - 1).to_bytes(width, "little")
        t.give(out)


def graph_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    require("graph" not in state)
    kind = piece.take(piece.varint())
    require(1 <= len(kind) <= 32 and all(chr(c).isalnum() or c == 45 for c in kind) and kind.isascii())
    require(any(c != 45 for c in kind))
    size = piece.varint()
    require(size <= 2**28)
    state["graph"] = unpacked(piece.take(len(piece.data) - piece.at), size)
    require(len(state["graph"]) == size)


def codebooks(piece: Bytes, tensors: list[Tensor]) -> list[list[list[float]]]:
    books = []
    for _ in range(how_many(piece, tensors)):
        n, width = piece.varint(), piece.varint()
        require(1 <= n <= 32768 and 1 <= width <= 64)
        values = [piece.f32() for _ in range(n * width)]
        require(all(math.isfinite(v) and (v or math.copysign(1, v) > 0) for v in values))
        books.append([values[i : i + width] for i in range(0, n * width, width)])
    return books


def codebook_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    books = codebooks(piece, tensors)
    heads = []
    for _ in range(how_many(piece, tensors)):
        t, book = coded(piece, tensors, REAL), piece.varint()
        require(book < len(books) and t.size % len(books[book][0]) == 0)
        heads.append((t, books[book]))
    for (t, book), own in zip(heads, runs(piece, [t.size // len(b[0]) for t, b in heads]), strict=True):
        require(all(0 <= index < len(book) for index in own))
        t.give(converted([F32(v) for index in own for v in book[index]], t.dtype))


def arranged_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    books = codebooks(piece, tensors)
    heads, gaps = [], []
    for number in range(how_many(piece, tensors)):
        t, book, form = coded(piece, tensors, REAL), piece.varint(), piece.u8()
        require(book < len(books) and t.size % len(books[book][0]) == 0)
        n = t.size // len(books[book][0])
        more: tuple[int, ...] = ()
        if form == 1:
            more = common, longest, distances, stored = piece.varint(), piece.u8(), piece.varint(), piece.varint()
            require(common < len(books[book]) and longest and 1 <= stored <= distances <= n)
            gaps.append(distances)
        elif form == 2:
            more = (piece.varint(),)
            require(1 <= more[0] <= number)
        else:
            require(form == 0)
        heads.append((t, books[book], form, more, n))
    counts = [more[3] if form == 1 else n for _, _, form, more, n in heads]
    found = runs(piece, gaps + counts)
    distances_left, stored_left = found[: len(gaps)], found[len(gaps) :]
    whole: list[list[int]] = []
    for (t, book, form, more, n), own in zip(heads, stored_left, strict=True):
        if form == 1:
            indices: list[int] = []
            left = list(own)
            for distance in distances_left.pop(0):
                require(0 <= distance <= more[1])
                indices += [more[0]] * distance
                if distance < more[1]:
                    require(left and left[0] != more[0])
                    indices.append(left.pop(0))
                last = distance
            require(not left and last < more[1] and len(indices) <= n)
            indices += [more[0]] * (n - len(indices))
        elif form == 2:
            before = whole[len(whole) - more[0]]
            indices = [code + (before[i] if i < len(before) else 0) for i, code in enumerate(own)]
        else:
            indices = own
        require(all(0 <= index < len(book) for index in indices))
        whole.append(indices)
        t.give(converted([F32(v) for index in indices for v in book[index]], t.dtype))


def dithered_section(piece: Bytes, tensors: list[Tensor], state: dict[str, Any]) -> None:
    require(piece.u8() == 1)
    seed, levels = int.from_bytes(piece.take(8), "little"), {}
    if n := piece.varint():
        low = piece.signed()
        require(n <= 32768 and abs(low) <= 32767)
        levels = {low + i: piece.f32() for i in range(n)}
        require(all(math.isfinite(v) and (v or math.copysign(1, v) > 0) for v in levels.values()))
    heads = []
    for _ in range(how_many(piece, tensors)):
        t, step, stream = coded(piece, tensors, REAL), piece.f32(), piece.varint()
        require(math.isfinite(step) and step > 0 and t not in [head[0] for head in heads])
        heads.append((t, step, stream))
    for (t, step, stream), own in zip(heads, runs(piece, [t.size for t, _, _ in heads]), strict=True):
        values = []
        for i, code in enumerate(own):
            require(abs(code) <= 32767 and (not levels or code == 0 or code in levels))
            level = F32(levels[code] if levels and code else code)
            with np.errstate(over="ignore"):
                values.append(F32(level - dither(seed, stream, i)) * F32(step) if code else F32(0))
        require(all(map(np.isfinite, values)))
        t.give(converted(values, t.dtype))


def dither(seed: int, stream: int, place: int) -> Any:
    def mixed(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    number = mixed((mixed((seed + (stream + 1) * golden) % 2**64) + (place + 1) * golden) % 2**64)
    return F32((number >> 40) * 2.0**-24 - 0.5)


KINDS = {
    1: raw_section,
    2: chain_section,
    3: metadata_section,
    4: grid_section,
    5: norm_section,
    6: structure_section,
    7: sparse_section,
    8: fields_section,
    9: floats_section,
    10: graph_section,
    11: codebook_section,
    12: dithered_section,
    13: arranged_section,
}
