"""Networks x seeds x methods, measured alike: bytes on disk, accuracy of what the file restores, time and memory."""

from ilwp_plugin.compare import baselines as _baselines  # noqa: F401  (registers)
from ilwp_plugin.compare import nncodec as _nncodec  # noqa: F401  (registers)
from ilwp_plugin.compare import own as _own  # noqa: F401  (registers)
from ilwp_plugin.compare.config import CompareConfig
from ilwp_plugin.compare.methods import METHODS, Case, Compressed, Method, Options
from ilwp_plugin.compare.queue import TaskError
from ilwp_plugin.compare.report import build_report
from ilwp_plugin.compare.results import MethodResult, TrainingResult, read_results
from ilwp_plugin.compare.run import compare

__all__ = [
    "METHODS",
    "Case",
    "CompareConfig",
    "Compressed",
    "Method",
    "MethodResult",
    "Options",
    "TaskError",
    "TrainingResult",
    "build_report",
    "compare",
    "read_results",
]
