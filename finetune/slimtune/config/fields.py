"""What every section of the schema is made of: a strict model, a field with its help, its types."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from slimtune.config import catalogues

ModelReference = Annotated[
    str, "model"
]  # a local folder (or .gguf file), a Hub id or ELSEWHERE: `settings` resolves it
# How a reference begins that is no path and no Hub id: a name of Ollama's, a server's address.
ELSEWHERE = ("ollama:", "http://", "https://")
# One file or folder, or several with commas and weights (`inputs.py`): `settings` resolves each.
Inputs = Annotated[Path, "inputs"]
Share = Annotated[float, Field(ge=0, le=1)]
MOST = 2**31 - 1  # rows, tokens, steps: torch, pyarrow and llama.cpp count in 32 bits somewhere
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**32 - 1)]  # numpy's and llama.cpp's; the last one is random
Rate = Annotated[float, Field(gt=0)]  # a learning rate
Epochs = Annotated[float, Field(gt=0, le=1e6)]  # a part of one is one too
Auto = Literal["auto"]  # chosen when the model is known; what was chosen is recorded


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    bare: str | None = None,
    catalogue: str | None = None,
    **checks: Any,
) -> Any:
    """A field with its help; `flag` names its flag where the dashed field name is not it.

    `bare` is what the flag means when it stands without a value, `catalogue` has its choices.
    """
    told = {"flag": flag, "bare": bare, "catalogue": catalogue}
    extra = {name: value for name, value in told.items() if value}
    return Field(default, description=help, json_schema_extra=extra, **checks)


def choice(default: Any, help: str, catalogue: str, **more: Any) -> Any:
    """A field whose choices are a catalogue's: its own help, then a line for each entry."""
    return setting(default, f"{help}\n{catalogues.listed(catalogue)}", catalogue=catalogue, **more)


class Section(BaseModel):
    """A section of config.yaml: unknown names are errors, numbers must be finite."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=()
    )
