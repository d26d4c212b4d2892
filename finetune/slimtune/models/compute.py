"""Where and in what numbers models compute: decided once, from the settings and the hardware.

    compute = Compute.of(config.model)          # device, dtype, quantization as the settings say
    model = load_model(folder, compute)         # and whoever else needs to know asks the same value
    compute.on(config)                          # what auto comes to for a model's config.json

The settings hold words ("auto"); a `Compute` holds what they come to on this machine.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch

from slimtune.errors import ResourceError, SettingsError
from slimtune.models.family import FAMILIES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The least hidden size for which a CPU that has bfloat16 products takes them by itself.
BFLOAT16_FROM = 384
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
    processes hold a part of every weight each (FSDP2, arXiv:2304.11277). A model that learns whole
    keeps float32 weights whatever they are multiplied in; one that is `streamed` leaves its weights
    in their files (models.streamed). What the settings left to the hardware is told apart, because
    the reasons differ.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: str = "none"
    attention: str | None = None
    shares: int = 1
    learns_whole: bool = False
    streamed: bool = False
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

    def on(self, config: Mapping[str, Any]) -> Self:
        """The same for the model of `config` (a config.json): where the settings leave the numbers
        to a CPU that multiplies bfloat16 fast, it does so for families known here that are no toys.

        Measured a layer, forward and backward with adapters, in CPU time of float32: 0.8 at hidden
        size 64, 0.6 at 256, 0.5 at 576. Small models gain seconds, and stay exact.
        """
        known = config.get("model_type") in FAMILIES
        large = known and config.get("hidden_size", 0) >= BFLOAT16_FROM
        alone = self.automatic_dtype and self.device.type == "cpu" and self.shares == 1
        if large and alone and not self.quantized and multiplies_bfloat16():
            return replace(self, dtype=torch.bfloat16)
        return self

    def learning_whole(self) -> Self:
        """The same for a model all of whose weights learn: on a CPU they are float32."""
        return replace(self, quantization="none", learns_whole=self.device.type == "cpu")

    @property
    def weights(self) -> torch.dtype:
        """The type that a model's weights are loaded in."""
        return torch.float32 if self.learns_whole else self.dtype

    @property
    def mixed(self) -> bool:
        """bfloat16 products between float32 sums on a CPU, as models.mixed has them."""
        return (
            self.device.type == "cpu"
            and self.dtype == torch.bfloat16
            and not self.quantized
            and self.shares == 1
        )

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
        return torch.bfloat16 if multiplies_bfloat16() else self.dtype

    def explain(self) -> str:
        """One line: where and in what numbers a model computes, and why."""
        numbers = str(self.dtype).removeprefix("torch.")
        return f"{self._where()}, {self._weights()}{numbers}: {self._reason()}"

    def _where(self) -> str:
        missing = self.automatic_device and self.device.type == "cpu"
        return f"{self.device.type} (no GPU found)" if missing else self.device.type

    def _weights(self) -> str:
        if self.mixed and self.learns_whole:
            return "float32 weights multiplied in "
        if not self.quantized:
            return ""
        kept = KEPT[self.quantization]
        if self.quantization == "nf4" and self.products != self.dtype:
            return f"{kept} multiplied in bfloat16 (this CPU has AVX512-BF16), "
        return f"{kept}, "

    def _reason(self) -> str:
        if self.mixed and not multiplies_bfloat16():
            return "as set, and slow: this CPU has no instructions for it (AVX512-BF16, AMX)"
        if not self.automatic_dtype:
            return "as set"
        if self.device.type == "cpu":
            return self._reason_on_cpu()
        has = "has" if self.dtype == torch.bfloat16 else "lacks"
        return f"{torch.cuda.get_device_name(self.device)} {has} bf16"

    def _reason_on_cpu(self) -> str:
        if self.dtype == torch.bfloat16:
            return "this CPU multiplies it fast (AVX512-BF16); sums, norms and loss in float32"
        if multiplies_bfloat16():
            return "exact; this CPU's bfloat16 is for larger models"
        return "16-bit numbers are slow on this CPU, and less exact"


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it: AVX512-BF16, which all with AMX have too."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


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
    """The type of weights and activations: float32 on a CPU (`Compute.on` may take bf16 for a
    model), on a GPU bf16, else fp16."""
    if dtype == "float16" and choose_device(device).type == "cpu":
        raise SettingsError(
            "model.dtype: float16 on a CPU",
            "CPUs compute it slowly, and training in it ends in NaN",
            "use --dtype auto, which is what suits this CPU",
        )
    if dtype != "auto":
        return DTYPES[dtype]
    if choose_device(device).type == "cpu":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16
