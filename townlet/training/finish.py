"""The end of a run: the final table, the pictures and the summary in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..evaluation.agent import Agent
from ..evaluation.table import Report, compare
from ..reports.html.run import try_report
from ..runs.folder import write_json

if TYPE_CHECKING:
    from .trainer import Trainer


def finish(trainer: Trainer) -> Report | None:
    """Evaluate a run that has ended and write summary.json, learning.png, survival.png (Town only) and report.html.

    Args:
        trainer: the run. Without a folder nothing is written.

    Returns:
        The final table; None where the run was stopped early or asks for no final evaluation.
    """
    config, folder = trainer.config, trainer.folder
    table = None
    if trainer.stopped_by is None and config.final_eval_episodes:
        table = compare(Agent.of(trainer), config.final_eval_episodes, config.seed, trainer.say)
    if folder is None:
        return table
    from ..reports import plots  # here, because matplotlib takes long to import

    plots.learning_curve(folder / "metrics.csv", folder / "learning.png")
    if table is not None and config.is_town:
        plots.survival(table, folder / "survival.png")
    summary: dict[str, Any] = {
        "env": config.env,
        "members": config.members,
        "env_steps": trainer.env_steps,
        "total_steps": config.total_steps,
        "updates": trainer.updates,
        "finished": trainer.env_steps >= config.total_steps,
        "stopped_by": None if trainer.stopped_by is None else trainer.stopped_by.name,
        "seconds": round(trainer.elapsed, 3),
        "seconds_by_phase": {k: round(v, 3) for k, v in trainer.seconds.items()},
    }
    if config.members > 1:
        hyper = trainer.schedules.hyper
        summary["hyper_parameters"] = {name: v.tolist() for name, v in hyper.items() if len(set(v)) > 1}
    if config.pbt_every:
        summary["copies"] = len(trainer.pbt.lineage)
    if table is not None:
        summary |= {"score": table.score_name, "policies": table.to_dict()}
    write_json(folder / "summary.json", summary)
    try_report(folder, trainer.say)
    return table
