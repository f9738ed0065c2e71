"""What ONNX Runtime makes of a model, where there is room for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onnxdistill.quantization.optimized import optimized
from tests.quantization.graphs import model_of

ROOT = Path(__file__).parent.parent.parent
MODEL = "g (float[1, 3] x) => (float[1, 3] y) { z = Identity(x) y = Relu(z) }"


def test_what_does_nothing_goes() -> None:
    assert [node.op_type for node in optimized(model_of(MODEL, {}), "basic").graph.node] == ["Relu"]


def test_a_disk_without_room_is_told_from_a_damaged_model() -> None:
    """ONNX Runtime speaks of Protobuf then, as of what is no model."""
    code = (
        "import resource; from onnxdistill.quantization.optimized import optimized\n"
        "from tests.quantization.graphs import model_of\n"
        f"model = model_of({MODEL!r}, {{}}); resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"
        "try: optimized(model, 'basic')\n"
        "except OSError as error: print(error.strerror, str(error.filename).endswith('optimized.onnx'))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (process.stdout, process.returncode) == ("File too large True\n", 0), process.stderr
