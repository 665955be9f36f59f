"""The codes of malformed files: `FormatError.code` is one of these, whatever the message says.

Another reader can be tested with the same corpus of malformed files: it has to find the same fault.
"""

from __future__ import annotations

__all__ = ["FAULTS"]

FAULTS: dict[str, str] = {
    # frame
    "not-ilwp": "the file does not begin with the magic",
    "version": "a version that this reader does not know",
    "truncated": "the file ends before what its header describes",
    "trailing-bytes": "the file goes on behind what its header describes",
    "header-too-large": "the header claims more bytes than there are, or than a header may have",
    "header-checksum": "the CRC-32 of the header is wrong",
    "section-checksum": "the CRC-32 of a section is wrong",
    "file-checksum": "the SHA-256 of the file is wrong",
    "padding": "bits or bytes that have to be zero are not",
    # numbers
    "too-short": "the header, a section or a payload ends before what it holds",
    "too-long": "bytes are left behind what the header, a section or a payload holds",
    "number-too-large": "a varint of more than 63 bits",
    "number-not-shortest": "a varint in more bytes than it needs",
    # header
    "count": "a number of tensors, layers, sections or channels that cannot be",
    "name": "a name that no tensor may have, or that occurs twice",
    "dtype": "a dtype that this reader does not know",
    "storage": "a storage that this reader does not know",
    "shape": "a shape beyond the limits",
    "alias": "an alias that does not refer to an earlier tensor of the same dtype",
    "section-unknown": "a critical section of a kind that this reader does not know",
    "section-twice": "a second section of a kind of which there may be one",
    "ownership": "a tensor is in no section or in several",
    # sections
    "position": "a reference to a tensor that the directory does not have",
    "unfit": "a tensor in a section that cannot hold its dtype, shape or storage",
    "form": "flags, a mode, a bit width or another choice that this reader does not know",
    "range": "a number outside the range that it may have: a step, a scale, an exponent, a zero point",
    "code": "a code outside the range that its layer allows",
    "reference": "a reference to a kernel that does not exist, or does not come before",
    "zeros": "a map of zeros that does not tell the zeros from the others",
    "not-finite": "a weight would be infinite or NaN",
    "value": "a value that its dtype does not have: a bool that is neither 0 nor 1",
    "origin": "survivors of pruning that are not distinct channels of the original layer",
    "metadata": "metadata that is no JSON object within the limits",
    # coders
    "coder-unknown": "a coder that this reader does not know",
    "table": "a code table that no encoder writes",
    "payload": "a payload that does not hold the symbols that it has to",
    # the caller's
    "limit": "valid so far, but reading it takes more memory than the caller allows",
    "platform": "this reader needs a little-endian machine",
}
"""What each code means."""
