"""An adapter and its base as two files: `convert_to_gguf.py --lora-as adapter`.

Five tasks are then one base of 4 GB and five adapters of 20 MB. The base is written once, in each
type that is asked for, with the prompt template that its first adapter was trained with:
llama-server would fall back to ChatML else. The proof runs base + adapter in llama.cpp against
base + adapter in peft, and says what the base's quantisation costs this adapter, beside the same
adapter merged first and quantised then.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slimtune.artifacts import finish_files, refuse_finished_files, refuse_inputs, run_of
from slimtune.artifacts import stage_files as staged
from slimtune.artifacts.files import write_text
from slimtune.config import Config
from slimtune.config.inputs import join_adapter
from slimtune.console import near, quoted, size
from slimtune.errors import QualityError, SettingsError
from slimtune.export import convert, ollama, preflight
from slimtune.export.adapter_file import AdapterFile, require_alone, write_adapter
from slimtune.export.gguf_writer import write_file
from slimtune.export.plan import GgufPlan, ModelSource, open_source
from slimtune.export.proof import proof_rows
from slimtune.export.quant_types import EXACT
from slimtune.models.adapters import Adapter
from slimtune.models.folders import local_folder
from slimtune.models.gguf_header import read_gguf
from slimtune.models.ollama_store import file_name
from slimtune.models.origin import FINGERPRINT, MODEL_FINGERPRINT, fingerprint, say_if_unknown
from slimtune.models.tokenizer_files import template_facts

if TYPE_CHECKING:
    from slimtune.export.proof.reference import Reference
    from slimtune.export.proof.verify import Cost
from slimtune.settings.commands import next_command, unless_set


@dataclass(frozen=True)
class AdapterExport:
    """What will be written: the bases that are not there yet, and the adapter.

    `bases` has a plan for every type of the base, `present` are those whose file is there and was
    made from this model. `template` is the one that the adapter was trained with; `own_template` is
    where it is written for llama-server, None where the bases carry it.
    """

    source: ModelSource
    bases: dict[Path, GgufPlan]
    present: set[Path]
    adapter: AdapterFile
    file: Path
    template: str
    own_template: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [one for one in (self.file, self.own_template) if one]

    @property
    def missing(self) -> dict[Path, GgufPlan]:
        return {file: plan for file, plan in self.bases.items() if file not in self.present}

    def following(self, config: Config) -> str:
        """The comparison of the adapter on each base, and how llama-server puts it on the first."""
        gguf = config.gguf
        folders = {"model.base_model": gguf.model_path, "evaluation.lora_model": gguf.lora_model}
        pairs = [join_adapter(near(base), near(self.file)) for base in self.bases]
        given = {**unless_set(config, folders), "evaluation.models": pairs}
        compare = next_command("evaluate_model", config, given)
        words = ["llama-server", "-m", near(next(iter(self.bases))), "--lora", near(self.file)]
        if self.own_template:
            words += ["--jinja", "--chat-template-file", near(self.own_template)]
        return f"{compare}\n       {' '.join(map(quoted, words))}"

    def estimates(self) -> dict[str, str]:
        """For --dry-run: what would be written, what is there."""
        told = convert.conversion_lines(self.missing.values()) if self.missing else {}
        if self.present:
            told["base"] = f"there already: {', '.join(map(near, sorted(self.present)))}"
        return told | _adapter_line(self.adapter)


@contextmanager
def open_export(config: Config) -> Iterator[AdapterExport]:
    """The export as the settings ask for it, after every check that needs no model in memory.

    Raises what `convert.plans_for` raises for the base, InputError for an adapter of another base
    or one that is more than B A, SettingsError where a base's file is there and is another's.
    """
    gguf = config.gguf
    if gguf.lora_model is None:
        raise SettingsError(
            "gguf.lora_as: adapter, and there is none",
            "gguf.lora_model is null",
            "name the adapter with --lora-model",
        )
    base_config = _for_the_base(config)
    with open_source(local_folder(gguf.model_path)) as source:
        adapter = Adapter(gguf.lora_model)
        adapter.require_base(source.checkpoint)
        adapter.require_effect(source.checkpoint)
        say_if_unknown(adapter.folder, source.folder, adapter.config)
        require_alone(adapter, source.checkpoint)
        plans = convert.plans_for(source, base_config)
        template = template_facts(gguf.lora_model).own or plans[0].template
        proof_rows(config, template)
        files = convert.files_of(base_config)
        bases = {
            file: replace(plan, template=template) for file, plan in zip(files, plans, strict=True)
        }
        present = {file for file in files if _is_there(file, source, config)}
        parts = (plans[0].architecture, gguf.adapter_type, plans[0].encoding.encoder)
        file = gguf.output_dir / f"{file_name(gguf.model_name)}-lora-{gguf.adapter_type}.gguf"
        other = [one for one in present if read_gguf(one).template != template]
        own_template = file.with_suffix(".jinja") if other else None
        export = AdapterExport(
            source, bases, present, AdapterFile(adapter, *parts), file, template, own_template
        )
        _refuse_finished(export, config)
        if export.missing:
            preflight.require_disk(export.missing)
        yield export


def deliver(config: Config, modelfile: Path | None) -> tuple[list[Path], dict[str, str], str]:
    """Everything that is written (in a dry run: would be), the closing numbers, what to do next.

    Raises what `open_export` and `convert_and_prove` raise.
    """
    with open_export(config) as export:
        base, plan = next(iter(export.bases.items()))
        said = modelfile and ollama.modelfile_for(modelfile, base, plan, config, export.file)
        files = [*export.missing, *export.outputs, *([modelfile] if modelfile else [])]
        following = export.following(config)
        if config.options.dry_run:
            return files, export.estimates(), following
        numbers = convert_and_prove(export, config, ollama.recorded(said))
        if modelfile:
            told, created = ollama.install(modelfile, said, base, plan, config, export.file)
            numbers |= told
            following = created if config.gguf.ollama_create else following
    return files, numbers, following


def convert_and_prove(
    export: AdapterExport, config: Config, noted: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Writes the bases that are missing, each proven, then the adapter, proven on each of them.

    `noted` goes into the adapter's record.

    Raises what `convert.convert_and_prove` raises; QualityError where llama.cpp says something else
    of base and adapter than peft, and then the adapter is left without its final name.
    """
    numbers = {}
    if export.missing:
        numbers = convert.convert_and_prove(export.source, export.missing, _for_the_base(config))
        numbers = {f"base, {key}": value for key, value in numbers.items()}
    manifest, inputs = convert.manifest_of(export.file), _inputs(config)
    outputs = export.outputs
    with staged("convert_to_gguf", manifest, config, outputs=outputs, inputs=inputs) as stage:
        written = stage.folder / export.file.name
        name = file_name(config.gguf.model_name)
        report = write_adapter(export.adapter, written, name, export.template)
        stage.metrics.update(vars(report) | noted)
        stage.metrics[FINGERPRINT] = fingerprint(export.source.checkpoint)
        if export.own_template:
            write_text(stage.folder / export.own_template.name, export.template)
        said, found = _prove(export, written, config)
        stage.metrics.update(found)
    return numbers | _adapter_line(export.adapter) | said


def _prove(
    export: AdapterExport, written: Path, config: Config
) -> tuple[dict[str, str], dict[str, Any]]:
    """The proof on each base, in words and as figures."""
    if config.gguf.verify == "off":
        return {"proof": "off: nothing was compared"}, {}
    from slimtune.export.proof import proving  # torch and transformers

    rows = proof_rows(config, export.template)
    both = replace(export.source, adapter=config.gguf.lora_model)
    said, figures = {}, {}
    with proving.failures_kept({export.file: written}):
        reference = proving.affordable_reference(both, export.template, rows)
        for base, plan in export.bases.items():
            kind = plan.quantization
            template = export.template if export.own_template else None
            with _merging_proposed(kind):
                proof = proving.prove(
                    base, base, kind, reference, config, adapter=written, chat_template=template
                )
            figures[kind] = proof["proof"]
            said[f"proof on {kind}"] = proving.proof_lines(proof)
            if kind not in EXACT and reference.answers:
                merged = _merged_first(export, plan, reference, config)
                figures[kind] |= {f"{name}_merged_first": one for name, one in vars(merged).items()}
                said[f"what {kind} costs"] = _choice(export, plan, figures[kind], merged)
    return said, {"proofs": figures}


@contextmanager
def _merging_proposed(kind: str) -> Iterator[None]:
    """Where a quantised base costs too much there is another way than a larger base for all."""
    try:
        yield
    except QualityError as error:
        cure = error.cure
        if kind not in EXACT:
            cure += "; or merge this adapter first: the same command without --lora-as adapter"
        raise QualityError(error.what, error.why, cure) from error


def _choice(export: AdapterExport, plan: GgufPlan, proof: dict[str, Any], merged: "Cost") -> str:
    """The adapter on the quantised base beside merging first, so that a person can choose."""
    lost = proof["nll_gguf"] - proof["nll_reference"]
    one, adapter = size(plan.bytes), size(export.adapter.bytes)
    return (
        f"adapter on this base {lost:+.4f} nats a token, same greedy text for "
        f"{proof['agreement']:.0%} of the tokens, {one} once and {adapter} a task; merged first "
        f"{merged.nats:+.4f}, {merged.agreement:.0%}, {one} a task"
    )


def _merged_first(
    export: AdapterExport, plan: GgufPlan, reference: "Reference", config: Config
) -> "Cost":
    """What the type costs where the adapter is merged first and quantised then."""
    from slimtune.export.proof.verify import cost_of

    gguf = config.gguf
    with (
        TemporaryDirectory(dir=gguf.output_dir) as folder,
        open_source(export.source.folder, gguf.lora_model) as merged,
    ):
        merged_plan = preflight.preflight(merged, plan.quantization, encoding=plan.encoding)
        file = Path(folder) / "merged.gguf"
        write_file({file: replace(merged_plan, template=export.template)})
        return cost_of(file, reference)


def _for_the_base(config: Config) -> Config:
    """The settings of a conversion of the base alone, named after its folder."""
    name = file_name(Path(config.gguf.model_path).name)
    alone = {"lora_model": None, "model_name": name}
    return config.model_copy(update={"gguf": config.gguf.model_copy(update=alone)})


def _is_there(file: Path, source: ModelSource, config: Config) -> bool:
    """Whether the base's file is there and was made from this model.

    Raises SettingsError for a file of another model, unless it may be written over.
    """
    if not file.exists() or config.options.overwrite:
        return False
    run, model = run_of(file), Path(config.gguf.model_path)
    made_from = Path(run["inputs"][0]["path"]) if run and run["inputs"] else None
    now = run_of(model) if model.is_dir() else None
    same_run = not now or not run or run["inputs"][0].get("run_id") == now["run_id"]
    # A folder of others has no record: under its name other weights may lie by now.
    weights = run["metrics"].get(MODEL_FINGERPRINT) if run else None
    same_weights = weights in (None, fingerprint(source.checkpoint))
    same_place = made_from is not None and made_from.resolve() == model.resolve()
    if same_place and same_run and same_weights:
        return True
    raise SettingsError(
        f"{near(file)}: the file of another base",
        f"it was not made from {near(model)} as it is now",
        "choose another --output-dir, or add --overwrite",
    )


def _refuse_finished(export: AdapterExport, config: Config) -> None:
    manifest, outputs = convert.manifest_of(export.file), export.outputs
    refuse_inputs([*outputs, manifest], _inputs(config))
    finish_files(manifest, config, outputs)
    refuse_finished_files(manifest, config, outputs)


def _inputs(config: Config) -> list[Path | str]:
    return [config.gguf.lora_model, config.gguf.model_path]


def _adapter_line(adapter: AdapterFile) -> dict[str, str]:
    fallbacks = f"; {len(adapter.fallbacks)} in F16 for their rank" if adapter.fallbacks else ""
    pairs = len(adapter.adapter.pairs)
    return {"adapter": f"{size(adapter.bytes)}, {pairs} pairs in {adapter.type_name}{fallbacks}"}
