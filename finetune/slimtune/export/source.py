"""Where a conversion reads: a model folder, or base and adapter merged on the fly."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from slimtune.console import InputError
from slimtune.models.checkpoints import EMBEDDING, Checkpoint
from slimtune.models.merged import MergedCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Source:
    """Weights from `checkpoint`; config, tokenizer and template from `folder`."""

    folder: Path
    checkpoint: Checkpoint


def as_source(model: "Path | str | Source") -> Source:
    """A folder as a source, a source as it is."""
    return model if isinstance(model, Source) else Source(Path(model), Checkpoint(model))


@contextmanager
def open_source(model: Path, adapter: Path | None = None) -> Iterator[Source]:
    """The model of a folder; with `adapter` the merged one, of which only companions are written.

    Raises InputError for an adapter that cannot be merged row by row.
    """
    if adapter is None:
        yield Source(model, Checkpoint(model))
        return
    merged = MergedCheckpoint(model, adapter)
    if not merged.streams:
        raise InputError(
            f"{adapter}: cannot be merged while it is converted",
            "peft has to merge this kind of adapter with the model in memory",
            f"python finetune/evaluate_model.py --base-model {model} --lora-model {adapter} "
            "--merge, then convert the merged folder",
        )
    with TemporaryDirectory() as temporary:
        # A GGUF says what the folder is called: the name that --merge would have given it.
        folder = Path(temporary) / "merged_model"
        merged.write_companions(folder)
        yield Source(folder, merged)


def load_model(source: Source, dtype: str = "float32") -> "PreTrainedModel":
    """The model in memory, in transformers; a merged one has the very bits the file is made of."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from slimtune.models import loading

    if not isinstance(source.checkpoint, MergedCheckpoint):
        return loading.load(source.folder, device="cpu", dtype=dtype)
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(
        config, dtype=loading.DTYPES[dtype], trust_remote_code=False
    ).eval()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            stored = name if name in source.checkpoint.tensors else EMBEDDING  # a tied output layer
            weight.copy_(source.checkpoint.read(stored))
    return model
