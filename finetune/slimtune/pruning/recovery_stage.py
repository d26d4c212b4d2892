"""Block-wise recovery as a stage of its own, for a run that has kept the cut model as well."""

import shutil
from pathlib import Path

from slimtune.artifacts import run_of, stage_folder
from slimtune.config import Config
from slimtune.models.folders import local_folder
from slimtune.models.served_decoding import with_decoding_of
from slimtune.pruning.calibration import calibrate
from slimtune.pruning.outcome import PruneReport, sizes_of, write_report
from slimtune.pruning.recovery import Kept, recover_blocks


def recover_model(config: Config, model: str, pruned: Path, final: Path) -> PruneReport:
    """Teach the layers of `pruned`, cut from `model` by `prune.cut_model`, and write `final`."""
    source = local_folder(model)
    config = with_decoding_of(config, source)
    kept = Kept(**run_of(pruned)["metrics"]["kept"])
    with stage_folder("model_pruning", final, config, inputs=[model, pruned]) as stage:
        scratch, calibration = stage.folder / "scratch", calibrate(source, config)
        read = calibration.batches
        taught = recover_blocks(source, pruned, stage.folder, read, config.pruning, scratch, kept)
        before, after = (sizes_of(one, calibration, scratch) for one in (source, stage.folder))
        shutil.rmtree(scratch)
        proven = {"blocks": taught.difference}
        report = PruneReport(before, after, calibration.source, proven, [])
        stage.metrics.update(taught.metrics())
        write_report(stage, report, config, model)
    return report
