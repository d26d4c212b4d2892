"""The combined run's last training: its final model, distilled into a quantised file.

Its teacher is that model before it is rounded, whoever taught the pruned one, and its step size is
that of such students; rows, text and epochs are those of the first distillation. The file stands
beside those of `export.sized`, whose types are chosen and whose weights are not trained.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from slimtune.artifacts.combined_run import Link
from slimtune.artifacts.records import run_of
from slimtune.config import Config, Distillation
from slimtune.export import preflight, sized
from slimtune.quantised import layer_stage, student
from slimtune.quantised.student_file import require_possible_when_cut
from slimtune.training import pipeline
from slimtune.training.dataset import dataset_of
from slimtune.training.distillation import passages_of

# Of the settings of the first distillation: what its teacher and its own weights were about.
_OWN = ("teacher_model", "teacher_quantization", "student", "alpha", "learning_rate")


def parted(config: Config) -> tuple[Config, Config]:
    """The settings of all stages before, which learn unrounded, and those of this one."""
    settings = config.distillation
    given: dict[str, object] = {"quantised_student": None}
    if _by_layers(config):
        given["student"] = Distillation().student
    unrounded = settings.model_copy(update=given)
    return config.model_copy(update={"distillation": unrounded}), _own(config)


def require_room(
    config: Config, base: str, todo: Collection[str], parameters: Callable[[], int]
) -> None:
    """Raises, before any work, what such a student and a conversion would refuse, and SettingsError
    for a size that `parameters` cut out of `base` can never have."""
    if "convert" in todo:
        sized.require_room(config, base, parameters())
    if "quantise" in todo:
        student.require_choices(_own(config))
        preflight.require_proof(config.gguf)
        require_possible_when_cut(config, base, "final", parameters())


def distil(config: Config, links: Mapping[str, Link], checkpoints: Path) -> None:
    """What the stage before has merged, into the folder of this one, with its file."""
    final, output = links["merge"].output, links["quantise"].output
    given = {"student_model": str(final), "output_dir": output}
    settings = config.distillation.model_copy(update=given)
    config = student.settled(config.model_copy(update={"distillation": settings}), str(final))
    if _by_layers(config):
        dataset, text = dataset_of(config, str(final)), passages_of(config)
        layer_stage.distil(config, str(final), dataset, text, checkpoints)
        return
    method = student.student(config, str(final), passages_of(config))
    pipeline.train(config, method, dataset_of(config, str(final)), output, checkpoints)


def written(links: Mapping[str, Link]) -> list[Path]:
    """The files of the run, as far as they are finished, its own first."""
    runs = {name: run_of(links[name].output) for name in ("quantise",) if name in links}
    own = [links[name].output / run["metrics"]["file"] for name, run in runs.items() if run]
    return own + sized.written([links["convert"].output] if "convert" in links else [])


def _own(config: Config) -> Config:
    usual = Distillation()
    given: dict[str, object] = {name: getattr(usual, name) for name in _OWN}
    if config.distillation.mode == "sequence":
        given["mode"] = usual.mode
    if _by_layers(config):
        given["student"] = config.distillation.student
        given |= {name: getattr(usual, name) for name in layer_stage.UNREAD}
    settings = config.distillation.model_copy(update=given)
    return config.model_copy(update={"distillation": settings})


def _by_layers(config: Config) -> bool:
    """Whether the layers of that student learn one after another; those of the first do not."""
    settings = config.distillation
    return settings.student == "layers" and settings.quantised_student is not None
