"""The combined run's stages in a row: where each writes, what it reads, and which are to be run."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from slimtune.artifacts.reading import require
from slimtune.artifacts.records import run_of
from slimtune.artifacts.stages import refuse_finished, refuse_finished_files
from slimtune.config import Config
from slimtune.console import near, note
from slimtune.errors import InputError, SettingsError
from slimtune.machine.process import forget_peak

STAGE = "train_pruned_distilled"  # what the merge at its end, and the script, are called


@dataclass(frozen=True)
class Link:
    """A stage: the folder or file it writes, and the stages whose output it reads."""

    output: Path
    reads: tuple[str, ...] = ()


_STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "prune": ("pruned", ()),
    "cache": ("teacher_cache", ()),
    "distil": ("distilled", ("prune",)),
    "lora": ("lora_adapter", ("distil",)),
    "merge": ("final", ("distil", "lora")),
    "evaluate": ("evaluation/evaluation_results.csv", ("prune", "distil", "merge")),
}
# With a vocabulary to be trimmed: first of all, and every model after it has the tokens left.
_TRIMMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "vocabulary": ("trimmed", ()),
    "prune": ("pruned", ("vocabulary",)),
    "cache": ("teacher_cache", ("vocabulary",)),
}
# With a type or size that a file shall have; another one is another file, and another comparison.
_FILES = {"quantise": "final-{kind}", "convert": "gguf/final-{kind}.gguf"}


def links_in(config: Config) -> dict[str, Link]:
    """The stages of a combined run in their order. Where the settings trim, the cut of the
    vocabulary is the first, and where layers learn, that comes after the cut; where they name types
    or sizes of files, these are among the last."""
    folder, stages = config.pruned_distilled.output_dir, dict(_STAGES)
    output, reads = stages.pop("evaluate")
    if config.pruning.trims:
        stages = _TRIMMED | {name: one for name, one in stages.items() if name not in _TRIMMED}
        reads = ("vocabulary", *reads)
    if config.pruning.recovers:
        stages, place = _with_blocks(stages), reads.index("prune") + 1
        reads = (*reads[:place], "blocks", *reads[place:])
    kinds = {"quantise": config.distillation.quantised_name, "convert": config.gguf.size_name}
    kinds = {name: kind for name, kind in kinds.items() if kind is not None}
    for name, kind in kinds.items():
        stages[name] = _FILES[name].format(kind=kind), ("merge",)
    compared = "-".join(["evaluation", *kinds.values()])
    stages["evaluate"] = output.replace("evaluation", compared, 1), (*reads, *kinds)
    return {name: Link(folder / output, reads) for name, (output, reads) in stages.items()}


def _with_blocks(stages: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict:
    """The stages with `blocks` after the cut; what read the cut model reads the taught one."""
    found = {}
    for name, (output, reads) in stages.items():
        found[name] = output, tuple("blocks" if one == "prune" else one for one in reads)
        if name == "prune":
            found["blocks"] = "recovered", ("prune",)
    return found


def checkpoints_in(folder: Path) -> tuple[Path, Path, Path]:
    """Where LoRA, the distillation and the one into a file keep their checkpoints."""
    names = ("checkpoints", "distilled_checkpoints", "quantised_checkpoints")
    return tuple(folder / name for name in names)


def outputs_of(links: Mapping[str, Link]) -> list[Path]:
    """What each stage writes, those left out that only some settings have between them."""
    optional = ("vocabulary", "blocks", "quantise")
    return [link.output for name, link in links.items() if name not in optional]


def models_in(links: Mapping[str, Link], base: str) -> tuple[Path | str, Path]:
    """The model that is cut, and the one that is distilled."""
    whole = links["vocabulary"].output if "vocabulary" in links else base
    return whole, links["blocks" if "blocks" in links else "prune"].output


def compared_in(links: Mapping[str, Link]) -> list[Path]:
    """The model folders that the last stage compares with the base."""
    reads = links["evaluate"].reads
    return [links[name].output for name in reads if name not in _FILES]


def chosen_stages(config: Config) -> list[str]:
    """pruned_distilled.stages, less what the settings have no use for: `cache` without a cached
    teacher, `vocabulary` where it is kept, `blocks` where layers do not learn, `quantise` without a
    quantised student, `convert` where no size is given.

    SettingsError for `sequence`, where the teacher's rows would take the place of the task's, for
    a vocabulary to be trimmed and nothing else to be cut, and for a flag of this run that names a
    stage which the settings have no use for.
    """
    chosen, mode = config.pruned_distilled.stages, config.distillation.mode
    if mode == "sequence" and "distil" in chosen:
        raise SettingsError(
            "distillation.mode: sequence in the combined run",
            "its teacher is asked for probabilities of the tokens of the model that is pruned",
            "name a folder or a .gguf file with that tokenizer as the teacher, or run "
            "knowledge_distillation.py --mode sequence by itself",
        )
    if config.pruning.trims and not config.pruning.cuts:
        raise SettingsError(
            "pruning.vocabulary: trim, and every ratio is 0",
            "the combined run prunes what it has trimmed, and there would be nothing to win back",
            "give a ratio such as --ffn-ratio 0.25, or trim by model_pruning.py and train that",
        )
    needed = {
        "cache": mode == "cached",
        "vocabulary": config.pruning.trims,
        "blocks": config.pruning.recovers,
        "quantise": config.distillation.quantised_student is not None,
        "convert": config.gguf.size_name is not None,
    }
    useless = {stage for stage, is_needed in needed.items() if not is_needed}
    if "pruned_distilled.stages" in config.options.flags:
        _refuse_useless(useless.intersection(chosen))
    return [stage for stage in chosen if stage not in useless]


def _refuse_useless(stages: Collection[str]) -> None:
    """SettingsError for a stage that a flag of this run names and the settings have no use for."""
    if "convert" in stages:
        raise SettingsError(
            "pruned_distilled.stages: convert, and no size is given",
            "it writes the best file for a size",
            "add --target-size 900MB or --target-bits 4.5, or leave convert out of --stages",
        )
    if "quantise" in stages:
        raise SettingsError(
            "pruned_distilled.stages: quantise, and no quantised student is asked for",
            "it distils the final model into a file of a type or size",
            "add --quantised-student Q4_K_M, or leave quantise out of --stages",
        )
    if "blocks" in stages:
        raise SettingsError(
            "pruned_distilled.stages: blocks, and no layer learns",
            "it teaches each layer what the uncut one gave, and pruning.recover is none",
            "add --recover blocks, or leave blocks out of --stages",
        )
    if "vocabulary" in stages:
        raise SettingsError(
            "pruned_distilled.stages: vocabulary, and it is kept",
            "the stage leaves the tokens in use alone, and pruning.vocabulary keeps all",
            "add --vocabulary trim, or leave vocabulary out of --stages",
        )


def run_stages(
    chosen: Collection[str], todo: Collection[str], work: Mapping[str, Callable[[], object]]
) -> None:
    """Run what is to be run, each stage with a peak of memory of its own."""
    for name in work:
        if name in chosen:
            note(f"{name}: {'starting' if name in todo else 'finished already'}")
        if name in todo:
            forget_peak()
            work[name]()


def stages_to_run(
    links: Mapping[str, Link], chosen: Collection[str], config: Config, command: str
) -> list[str]:
    """The chosen stages that are to be run, in the order of `links`.

    With --resume those that have finished are left out. Raises SettingsError for a finished one
    that may not be replaced, and InputError, naming `command` with the stages it needs, where one
    would read what is not there.
    """
    finished = {name for name, link in links.items() if run_of(link.output)}
    wanted = [name for name in links if name in chosen]
    for name in wanted:
        for read in links[name].reads:
            if read not in wanted and read not in finished:
                stages = ",".join(one for one in links if one in {*wanted, read})
                raise InputError(
                    f"{near(links[read].output)}: not there",
                    f"the stage {name} reads it, and {read} is not among --stages",
                    f"{command} --stages {stages}",
                )
            if read not in wanted:
                require(links[read].output)
    todo = [name for name in wanted if not (config.options.resume and name in finished)]
    for name in todo:
        _refuse(links[name].output, config)
    return todo


def _refuse(output: Path, config: Config) -> None:
    if output.suffix in (".csv", ".gguf"):  # a folder may be called after a size, 1.2MB
        refuse_finished_files(output.with_name(f"{output.stem}_run.json"), config, [output])
    else:
        refuse_finished(output, config)
