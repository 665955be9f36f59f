"""Reading needs numpy alone: every golden file, bit for bit, where nothing else can be imported."""

import json
import subprocess
import sys
from pathlib import Path

from tests.format.measuring import PEAK

ROOT = Path(__file__).parent.parent.parent

ALONE = """
import sys

class Nothing:
    \"\"\"Refuses every import but of the standard library, numpy and the package.\"\"\"
    allowed = {*sys.stdlib_module_names, *sys.builtin_module_names, "numpy", "ilwp_plugin", "tests"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ImportError(f"{name} is not installed here")

class Hidden(dict):
    pass

import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: find(name) if name.partition(".")[0] in Nothing.allowed else None
sys.meta_path.insert(0, Nothing())
for name in list(sys.modules):
    assert name.partition(".")[0] not in ("torch", "constriction", "bitarray", "ml_dtypes", "numba", "scipy"), name
"""

READ_ALL = (
    ALONE
    + """
import json
from pathlib import Path
from tests.corpus import golden
expected = json.loads((golden.FOLDER / "expected.json").read_text())
for name, known in expected.items():
    data = (golden.FOLDER / f"{name}.ilwp").read_bytes()
    assert golden.values_of(data) == known["tensors"], name
print(len(expected), sorted(n for n in sys.modules if n.partition(".")[0] in ("torch", "constriction", "bitarray")))
"""
)


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_golden_file_with_numpy_alone() -> None:
    expected = json.loads((ROOT / "tests" / "corpus" / "valid" / "expected.json").read_text())
    assert run(READ_ALL).split(maxsplit=1) == [str(len(expected)), "[]\n"]


def test_written_and_refused_with_numpy_alone() -> None:
    """The writer gives the golden bytes, and the malformed files have their codes."""
    code = """
import tempfile
from pathlib import Path
from tests.corpus import forge, golden
from ilwp_plugin import format
from ilwp_plugin.errors import FormatError
for name, make in golden.WRITTEN.items():
    expected = (golden.FOLDER / f"v1_{name}.ilwp").read_bytes()
    made = b"".join(format.pack(*make()))
    assert golden.plain(made) == expected, name
    with tempfile.TemporaryDirectory() as folder:
        format.write(Path(folder) / "x.ilwp", *make())  # reads back what it has written
        assert (Path(folder) / "x.ilwp").read_bytes() == made, name
for name, data in forge.build_all().items():
    try:
        format.read(data)
    except FormatError as error:
        assert error.code == forge.EXPECTED[name][0], name
    else:
        raise SystemExit(name)
print("good")
"""
    assert run(ALONE + code) == "good\n"


def test_import_is_quick() -> None:
    """In half a second of computing; what is slow is loaded when it is needed."""
    code = "import time; start = time.process_time(); import ilwp_plugin.format; print(time.process_time() - start)"
    assert min(float(run(code)) for _ in range(3)) < 0.5


def test_dtypes_that_numpy_lacks() -> None:
    code = """
from tests.corpus import golden
from ilwp_plugin import format
from ilwp_plugin.errors import MissingDependencyError
file = format.read((golden.FOLDER / "v1_every_dtype.ilwp").read_bytes())
for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"):
    try:
        file.tensor(f"of.{name}")
    except MissingDependencyError as error:
        assert f"numpy has no {name}; pip install ml_dtypes" in str(error)
    else:
        raise SystemExit(name)
    assert file.tensor(f"of.{name}", as_bits=True).dtype.kind == "u"
assert file.tensor("of.float16").dtype == "float16"
print("good")
"""
    assert run(ALONE + code) == "good\n"


LARGE = """
import numpy as np
from ilwp_plugin import format
random = np.random.default_rng(0)
infos = [format.TensorInfo(f"{i}.weight", "float32", (512, 1024), "coded") for i in range(8)]
codes = [np.rint(random.laplace(0, 0.8, info.shape)).astype(np.int16) for info in infos]
values = [format.IntegerTensor(own, np.float32(0.05)) for own in codes]
print(format.write(sys.argv[1], infos, [format.GridSection(infos, values, sys.argv[2])]).file_bytes)
"""

TIMED = (
    PEAK
    + """
from ilwp_plugin import format
before, start = peak(), time.process_time()
state = format.read(sys.argv[1]).state()
print(time.process_time() - start, peak() - before)
print(sum(value.nbytes for value in state.values()), sum(float(value.sum(dtype="f8")) for value in state.values()))
"""
)


def test_four_million_weights(tmp_path: Path) -> None:
    """In seconds with numpy alone and in half a second with constriction, in three times the restored bytes at most."""
    for coder, alone in (("ans", 8.0), ("huffman", 4.0)):
        path = tmp_path / f"{coder}.ilwp"
        size = int(run("import sys\n" + LARGE, path, coder))
        slow, quick = run(ALONE + TIMED, path).split(), run("import sys\n" + TIMED, path).split()
        assert slow[2:] == quick[2:] and int(slow[2]) == 4 << 22
        assert float(slow[0]) < alone and float(quick[0]) < 0.8, (coder, slow, quick)
        for _, grown, restored, _ in (slow, quick):
            assert int(grown) + size < 3 * int(restored), (coder, grown, restored)
