"""The end of a run: the final table, the pictures and the summary in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .evaluation.agent import Agent
from .evaluation.table import Report, compare
from .folder import write_json
from .html.run import try_report

if TYPE_CHECKING:
    from .trainer import Trainer


def finish(trainer: Trainer) -> Report | None:
    """The end of a run: final comparison, survival.png (Town), learning.png and summary.json in its folder.

    Returns None when the run was stopped early or asks for no final evaluation; summary.json is written all the same.
    """
    config, folder = trainer.config, trainer.folder
    report = None
    if trainer.stopped_by is None and config.final_eval_episodes:
        report = compare(Agent.of(trainer), config.final_eval_episodes, config.seed, trainer.say)
    if folder is None:
        return report
    from . import plots  # matplotlib takes long to import

    plots.learning_curve(folder / "metrics.csv", folder / "learning.png")
    if report is not None and config.is_town:
        plots.survival(report, folder / "survival.png")
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
    if report is not None:
        summary |= {"score": report.score_name, "policies": report.to_dict()}
    write_json(folder / "summary.json", summary)
    try_report(folder, trainer.say)
    return report
