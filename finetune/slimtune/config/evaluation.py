"""How a model answers, and how its answers are compared, talked with and reported."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from slimtune.config.catalogues import names
from slimtune.config.fields import (
    Auto,
    Count,
    ModelReference,
    Positive,
    Section,
    Seed,
    Share,
    choice,
    setting,
)


class GenerationSection(Section):
    """How answers are chosen: measured so, and written so for whoever serves the model."""

    source: Literal["settings", "base"] = setting(
        "settings",
        "settings: the values below. base: in their place those of the base model's own\n"
        "generation_config.json, everywhere; it can be written `generation: base` for short.",
        flag="generation",
    )
    temperature: Annotated[float, Field(ge=0)] = setting(
        0.0,
        "0: always the likeliest token (greedy), the same answer every time. Above 0 tokens are\n"
        "drawn by their probabilities, the more evenly the higher it is.",
    )
    top_k: Count = setting(0, "Draw from that many likeliest tokens; 0: from all.")
    top_p: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0, "Draw from the likeliest tokens that together have this probability; 1: from all."
    )
    min_p: Share = setting(
        0.0, "Draw from tokens with at least this share of the likeliest one's probability; 0: all."
    )
    repeat_penalty: Annotated[float, Field(gt=0)] = setting(
        1.0,
        "Above 1 makes tokens that stand in prompt or answer already less likely, even when the\n"
        "likeliest is taken; 1: no change.",
    )
    max_new_tokens: Positive | Auto = setting(
        "auto",
        "Longest answer in tokens. auto: as long as the longest reference answer can be, 512 and\n"
        "half of max_length at most. A chat lets an answer grow to 512; Ctrl-C stops it.",
    )
    seed: Seed | None = setting(
        None,
        "Seed of what is drawn; each row draws for itself, whatever is asked beside it. null: 0.\n"
        "A number goes into a Modelfile as well: Ollama then draws alike for every question, and\n"
        "answers the same one the same way each time.",
        examples=[7],
    )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def words(self) -> str:
        """What differs from greedy, by the settings' names; "greedy" where nothing does."""
        drawn = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
        told = ["repeat_penalty"] if self.greedy else drawn
        usual = type(self)()
        changed = [name for name in told if getattr(self, name) != getattr(usual, name)]
        named = [f"{name} {getattr(self, name):g}" for name in changed]
        return ", ".join([*(["greedy"] if self.greedy else []), *named])


LIMITS = ("forgot", "perplexity_up", "match_below")


def _limit(text: str) -> str:
    """A limit as people write it, such as forgot=0.05."""
    name, _, number = text.partition("=")
    if name.strip() not in LIMITS or not re.fullmatch(r"[0-9]*\.?[0-9]+", number.strip()):
        raise ValueError(f"a limit is written NAME=NUMBER; the names are {', '.join(LIMITS)}")
    return f"{name.strip()}={number.strip()}"


class Evaluation(Section):
    """An honest before and after: the same rows and prompt, one model in memory at a time."""

    lora_model: Path | None = setting(
        Path("models/finetuned/lora_adapter"),
        "Adapter to put on the base model; null: none.",
    )
    models: list[ModelReference] = setting(
        [],
        "More to compare: folders, Hub ids, .gguf files, BASE.gguf+ADAPTER.gguf, ollama:NAME, or\n"
        "a model that a server runs, as http://HOST:PORT/v1#NAME; separated by commas.",
    )
    baseline: str | None = setting(
        None,
        "Name in the table of the model that comes first and that all others are judged against;\n"
        "null: the base model. Each is judged against the one it was made from as well.",
    )
    test_data: Path | None = setting(
        None,
        "Prepared rows to test on; null: the NAME_test.jsonl beside the rows that the models\n"
        "were trained on, or beside training.train_data where no record names any.",
    )
    output: Path = setting(
        Path("models/evaluation/evaluation_results.csv"),
        "CSV with one row a prompt; metrics and the reports go beside it. An unfinished run of\n"
        "the same name goes on with the answers it has, unless --overwrite asks for new ones.",
    )
    max_rows: Count = setting(0, "Test rows to use; 0: all.")
    token_budget: Positive = setting(
        8192,
        "Tokens of prompts and answers in a batch. Less takes less memory and more time; a batch\n"
        "that does not fit is halved by itself.",
    )
    extract: Literal[names("patterns")] = choice(
        "whole",
        'What of an answer must match the reference. A row\'s own field "extract" comes first.',
        "patterns",
    )
    general: Positive | Literal["auto", "off"] = setting(
        "auto",
        "General questions that all models get besides the rows, to show what was forgotten: so\n"
        "many in all, half English, half Chinese, 300 at most. auto: 150, but no more than there\n"
        "are rows, and none below 20 rows. A language in which the first model is right no more\n"
        "often than by chance is left out. off: none.",
    )
    fail_if: list[Annotated[str, AfterValidator(_limit)]] = setting(
        [],
        "Limits as NAME=NUMBER (forgot=0.05,match_below=0.8). Where a model after the first is\n"
        "beyond one, all is written and the exit code is 5. forgot: share of the general\n"
        "questions lost, less those gained; perplexity_up: rise of the perplexity on neutral\n"
        "text, 0.2 is a fifth; match_below: share of exact matches on the rows.",
    )
    interactive: bool = setting(False, "true opens a chat instead.")
    merge: bool = setting(False, "true merges the adapter into the base and stops.")
    merged_dir: Path | None = setting(
        None,
        "Folder for the merged model; null: merged_model beside the adapter.",
        flag="output-dir",
    )
    language: Literal["en", "zh"] = setting(
        "en", "Language of reports, of --help and of --print-config."
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits of fail_if by their names."""
        pairs = (one.split("=") for one in self.fail_if)
        return {name: float(number) for name, number in pairs}

    @model_validator(mode="after")
    def _asks_what_it_limits(self) -> Self:
        named = [name for name in self.limits if name != "match_below"]
        if named and self.general == "off":
            raise ValueError(f"fail_if names {named[0]}, and general: off measures none")
        return self
