"""How a model is run on a board: threads and execution providers. Decisions only, in one place.

1. `execution.threads` of the configuration counts; 0 stands for what suits:
   one thread, and half of the processor's cores, four at most, for model files of 4 MiB and more.
   A second thread shortens no call of a small model and lengthens the slowest ones (p99 from 20
   to 203 µs, measured on x86); a file of 4 MiB is read in a millisecond at best on a small board,
   next to which waking threads is nothing. The other cores belong to the application.
2. `execution.providers` counts; empty stands for what suits the board: TensorRT, CUDA and the CPU
   on a Jetson, else the CPU. The CPU always comes last.
"""

import os
from collections.abc import Sequence

from msgspec import Struct, field

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
LARGE_MODEL_BYTES = 4 * 1024 * 1024
MAX_THREADS = 4


class How(Struct, frozen=True, omit_defaults=True):
    """How sessions are made.

    Attributes:
        threads: of one call; 0 takes what suits the model file.
        providers: of ONNX Runtime, in order of preference.
        engines: folder in which TensorRT's built engines are kept; empty for nowhere.
    """

    threads: int = 0
    providers: list[str] = field(default_factory=lambda: [CPU])
    engines: str = ""

    @property
    def uses_gpu(self) -> bool:
        """Whether another provider than the CPU may be used."""
        return any(name != CPU for name in self.providers)


def choose(threads: int, providers: Sequence[str], board: str, engines: str) -> How:
    """Return how sessions are made on this device.

    Args:
        threads: as configured, 0 for what suits.
        providers: as configured, empty for what suits.
        board: name of the board.
        engines: folder for built engines.
    """
    wanted = list(providers)
    if not wanted and board.startswith("jetson"):
        wanted = [TENSORRT, CUDA]
    order = [name for name in dict.fromkeys(wanted) if name != CPU]
    return How(threads, [*order, CPU], engines if TENSORRT in order else "")


def threads_for(asked: int, model_bytes: int, cores: int | None = None) -> int:
    """Return the threads of one call.

    Args:
        asked: 0 for what suits.
        model_bytes: size of the model file.
        cores: that this process may use; None to ask the system.
    """
    if asked:
        return asked
    if model_bytes < LARGE_MODEL_BYTES:
        return 1
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    return max(1, min(cores // 2, MAX_THREADS))
