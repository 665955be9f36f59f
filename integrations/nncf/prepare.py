"""Compile NNCF's quantization extension now, not in the first training: `python -m ilwp_integrations.nncf.prepare`.

It takes a minute and must not be interrupted: torch leaves a lock behind on which every later compilation waits. NNCF
gives up after a minute unless NNCF_EXTENSION_LOAD_TIMEOUT (seconds; 0 is for ever) says otherwise. NNCF 2 and 3 want
different binaries under one name, so each environment needs its own TORCH_EXTENSIONS_DIR.
"""

from __future__ import annotations

from nncf.torch.quantization.extensions import QuantizedFunctionsCPULoader

from ilwp_plugin.errors import TrainingError

__all__ = ["prepare"]


def prepare() -> None:
    """Compile and load the extension.

    Raises:
        TrainingError: there is no working compiler; NNCF then trains with slower operations of torch.
    """
    extension = QuantizedFunctionsCPULoader.load()
    if not hasattr(extension, "__file__"):
        raise TrainingError("NNCF's quantization extension does not compile; is there a C++ compiler?")


if __name__ == "__main__":
    prepare()
