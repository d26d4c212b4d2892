"""Where and in what numbers models compute: decided once, from the settings and the hardware.

    compute = Compute.of(config.model)          # device, dtype, quantization as the settings say
    model = load_model(folder, compute)         # and whoever else needs to know asks the same value

The settings hold words ("auto"); a `Compute` holds what they come to on this machine.
"""

import os
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch

from slimtune.console import ResourceError, SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEPT = {"nf4": "weights in 4 bits (nf4)", "int8": "weights in 8 bits (int8)"}


class ComputeSettings(Protocol):
    """The words of the settings: those of config.model."""

    device: str
    dtype: str
    quantization: str


@dataclass(frozen=True)
class Compute:
    """A decision: `device` and `dtype` (what is computed with) as torch knows them.

    `quantization` keeps linear layers in 4 bits (nf4 with double quantisation, QLoRA
    arXiv:2305.14314), in 8 (int8, LLM.int8() arXiv:2208.07339) or as they are (none). `attention`
    is the name of an implementation, None for transformers' own. With `shares` above 1 so many
    processes hold a part of every weight each (FSDP2, arXiv:2304.11277). What the settings left to
    the hardware is told apart, because the reasons differ.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: str = "none"
    attention: str | None = None
    shares: int = 1
    automatic_device: bool = False
    automatic_dtype: bool = False

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto", quantization: str = "none") -> Self:
        """Raises ResourceError for a GPU that is not there, SettingsError for float16 on a CPU."""
        return cls(
            choose_device(device),
            choose_dtype(device, dtype),
            quantization,
            automatic_device=device == "auto",
            automatic_dtype=dtype == "auto",
        )

    @classmethod
    def of(cls, model: ComputeSettings) -> Self:
        """What the settings of a model come to on this machine; raises as `choose`."""
        return cls.choose(model.device, model.dtype, model.quantization)

    def keeping(self, quantization: str) -> Self:
        """The same for a model whose weights are kept in another way."""
        return replace(self, quantization=quantization)

    @property
    def quantized(self) -> bool:
        return self.quantization != "none"

    @property
    def products(self) -> torch.dtype:
        """What 4-bit layers multiply in; weights and activations around them keep their type.

        bf16 on CPUs with AVX512-BF16: training 82 M parameters took 0.84 of float32's CPU time
        (0.64 where MKL multiplies), its loss off by 3e-4 after twelve steps. Without it bf16 is 28
        times slower.
        """
        if not self.automatic_dtype or self.device.type != "cpu":
            return self.dtype
        from bitsandbytes.functional import has_avx512bf16  # seconds, and only 4 bits need it

        return torch.bfloat16 if has_avx512bf16() else self.dtype

    def explain(self) -> str:
        """One line: where and in what numbers a model computes, and why."""
        numbers = str(self.dtype).removeprefix("torch.")
        return f"{self._where()}, {self._weights()}{numbers}: {self._reason()}"

    def _where(self) -> str:
        missing = self.automatic_device and self.device.type == "cpu"
        return f"{self.device.type} (no GPU found)" if missing else self.device.type

    def _weights(self) -> str:
        if not self.quantized:
            return ""
        kept = KEPT[self.quantization]
        if self.quantization == "nf4" and self.products != self.dtype:
            return f"{kept} multiplied in bfloat16 (this CPU has AVX512-BF16), "
        return f"{kept}, "

    def _reason(self) -> str:
        if not self.automatic_dtype:
            return "as set"
        if self.device.type == "cpu":
            return "16-bit numbers are slow on most CPUs, and less exact"
        has = "has" if self.dtype == torch.bfloat16 else "lacks"
        return f"{torch.cuda.get_device_name(self.device)} {has} bf16"


def choose_device(device: str = "auto") -> torch.device:
    """auto is the GPU where there is one; under `accelerate launch` each process has its own."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(
            "device: cuda, but torch finds no GPU",
            f"torch {torch.__version__} {'has no CUDA' if not torch.version.cuda else 'sees none'}",
            "set device to auto, or install torch's CUDA build and check `nvidia-smi`",
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def choose_dtype(device: str = "auto", dtype: str = "auto") -> torch.dtype:
    """The type of weights and activations: float32 on a CPU, on a GPU bf16, else fp16."""
    if dtype == "float16" and choose_device(device).type == "cpu":
        raise SettingsError(
            "model.dtype: float16 on a CPU",
            "CPUs compute it slowly, and training in it ends in NaN",
            "use --dtype auto, which is float32 on a CPU",
        )
    if dtype != "auto":
        return DTYPES[dtype]
    if choose_device(device).type == "cpu":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16
