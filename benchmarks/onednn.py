"""Float32 matrix products: torch's own library (MKL) and oneDNN, which training uses on some CPUs.

    python benchmarks/onednn.py

Sizes are those of a training step of 865 tokens: the layers of hidden size 256 and 640, their
adapters, and the output head on 128 positions; forward, and the gradient of the inputs.
"""

import sys
import time
from collections.abc import Callable

import torch
from measuring import FINETUNE, machine, table

sys.path.insert(0, str(FINETUNE))

ENOUGH = 0.5  # CPU seconds a figure
SIZES = {  # rows, inputs, outputs
    "attention, hidden 256": (865, 256, 256),
    "FFN, hidden 256": (865, 256, 688),
    "adapter, rank 8": (865, 256, 8),
    "output head, hidden 256": (128, 256, 32_000),
    "FFN, hidden 640": (865, 640, 1792),
    "output head, hidden 640": (128, 640, 32_000),
}


def main() -> None:
    from slimtune.machine import onednn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine(["torch"]))
    lines = []
    for name, (rows, inputs, outputs) in SIZES.items():
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        gradient, billions = torch.randn(rows, outputs), 2 * rows * inputs * outputs / 1e9
        for way, product in {
            "forward": lambda x=x, w=weight: x @ w.t(),
            "backward": lambda g=gradient, w=weight: g @ w,
        }.items():
            usual, there = _seconds(product), product()
            with onednn.through_onednn():
                faster, here = _seconds(product), product()
            off = (there - here).abs().max() / there.abs().max()
            speeds = [billions / usual, billions / faster]
            lines.append([name, way, *speeds, f"{usual / faster:.2f}x", f"{off:.0e}"])
    headers = ["", "way", "torch GFLOP/s", "oneDNN GFLOP/s", "faster", "largest difference"]
    table("One thread", headers, lines)
    chosen = "oneDNN" if onednn.onednn_is_faster() else "torch's own library"
    print(f"\nTraining on this processor uses {chosen}.")


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    """CPU seconds of one call, after two that compile and warm."""
    product(), product()
    started, calls = time.process_time(), 0
    while time.process_time() - started < ENOUGH:
        product()
        calls += 1
    return (time.process_time() - started) / calls


if __name__ == "__main__":
    main()
