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
# With a size that a file shall have; another size is another file, and another comparison.
_SIZED: dict[str, tuple[str, tuple[str, ...]]] = {
    "convert": ("gguf/final-{target}.gguf", ("merge",)),
    "evaluate": (
        "evaluation-{target}/evaluation_results.csv",
        ("prune", "distil", "merge", "convert"),
    ),
}


def links_in(folder: Path, target: str | None = None) -> dict[str, Link]:
    """The stages of a combined run in `folder`, in their order; with `target`, what a size is
    called in the name of a file, a GGUF of that size is one of them."""
    stages = _STAGES
    if target is not None:
        stages = {name: stage for name, stage in _STAGES.items() if name not in _SIZED} | _SIZED
    return {
        name: Link(folder / output.format(target=target), reads)
        for name, (output, reads) in stages.items()
    }


def chosen_stages(config: Config) -> list[str]:
    """pruned_distilled.stages, less what the mode of distillation has no use for, and `convert`
    where no size is given.

    SettingsError for `sequence`, where the teacher's rows would take the place of the task's, for a
    vocabulary to be trimmed, and for a flag of this run that names `convert` without a size.
    """
    chosen, mode = config.pruned_distilled.stages, config.distillation.mode
    if mode == "sequence" and "distil" in chosen:
        raise SettingsError(
            "distillation.mode: sequence in the combined run",
            "its teacher has the tokenizer of the model that is pruned, and is asked for more",
            "use cached or online here, or run knowledge_distillation.py --mode sequence by itself",
        )
    if config.pruning.vocabulary == "trim":
        raise SettingsError(
            "pruning.vocabulary: trim in the combined run",
            "its teacher would speak of tokens that the student lacks",
            "trim first, model_pruning.py --vocabulary trim --ffn-ratio 0 --model-path MODEL, and "
            "give the folder that it writes as --base-model, with --vocabulary keep",
        )
    sized = config.gguf.size_name is not None
    if not sized and "convert" in chosen and "pruned_distilled.stages" in config.options.flags:
        raise SettingsError(
            "pruned_distilled.stages: convert, and no size is given",
            "it writes the best file for a size",
            "add --target-size 900MB or --target-bits 4.5, or leave convert out of --stages",
        )
    useless = {"cache"} if mode != "cached" else set()
    useless |= set() if sized else {"convert"}
    return [stage for stage in chosen if stage not in useless]


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
    if output.suffix:
        refuse_finished_files(output.with_name(f"{output.stem}_run.json"), config, [output])
    else:
        refuse_finished(output, config)
