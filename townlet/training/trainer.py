"""The training loop: act in all worlds at once, store, learn; now and then evaluate, record and write a checkpoint.

One iteration is one step of all P * E environments; the `Rollout` acts and stores. Steps are counted per member, so an
iteration adds E. Everything that decides what happens next (weights, replay, random counters, worlds, carried state,
counters) is in ``state_dict``, and schedules are functions of the step count. That is why a resumed run repeats the
uninterrupted one bit for bit.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..envs.adapter import VectorAdapter
from ..envs.make import make_worlds
from ..evaluation.play import Evaluation, evaluate
from ..learning.assembly import build_network, memory_statement, open_worlds, replay_sizes, td_spec
from ..learning.learner import Learner
from ..learning.population import VectorizedPopulation
from ..learning.replay import SequentialReplayBuffer
from ..reports.html.run import LiveReport
from ..runs import checkpoint
from ..runs.folder import new_folder
from ..runs.metrics import Records
from ..runs.resume import CHANGEABLE_ON_RESUME, stopped_run
from ..runs.sessions import note_session
from ..runs.wandb import WandbLog, require_wandb
from ..settings.config import Config
from ..support import devices
from ..support.files import only_writer
from ..support.signals import stop_signals
from .pbt import PopulationBasedTraining
from .progress import Progress, score_text
from .rollout import Rollout
from .schedules import Schedules
from .statistics import Means


class Trainer:
    """Trains a population as ``config`` says.

    Args:
        config: the settings.
        record: whether to write a new run folder (config.yaml, metrics, events, checkpoints), at ``config.run_dir`` or
            under runs/. None writes one only where ``config.run_dir`` is given.
        folder: an existing run folder to continue (``resume`` uses it).
        td_unroll: the fused operator; None takes `ops.td_unroll`. Tests pass broken twins.
        make: opens worlds: ``make(env_id, n, **args)``.
        say: receives lines meant for a person, such as how much memory the run takes.

    Attributes:
        env_steps: environment steps taken, per member.
        rollout: the training worlds, and the episodes that run in them.
        population: the members' networks, optimiser and recurrent state.
        replay: the stored transitions.
        learner: makes the updates.
        schedules: the members' hyper-parameters, and what they are at a step.
        pbt: population based training.
        evaluations: the latest hundred evaluations, each with its step.
        elapsed: wall-clock seconds of training, pauses between resumptions left out.
        stopped_by: the signal that ended ``train``, or None.
        folder: the run folder, or None.

    Raises:
        ValueError: a world or setting is not supported, or the run needs more memory than the machine has.
    """

    def __init__(
        self,
        config: Config,
        *,
        record: bool | None = None,
        folder: str | Path | None = None,
        td_unroll: Callable[..., Any] | None = None,
        make: Callable[..., VectorAdapter] = make_worlds,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.make, self.say = config, make, say
        if config.threads:
            torch.set_num_threads(config.threads)
        P, E = config.members, config.num_envs
        device = devices.resolve(config.device)
        self.rollout = Rollout(config, make=make)
        worlds = self.rollout.worlds
        self.network = build_network(config, worlds)
        sizes = replay_sizes(config, worlds, self.network, self.rollout.legal is not None)
        say(memory_statement(config, sizes, self.network, device))
        for notice in worlds.notices:
            say(notice)
        seeds = [config.seed + p for p in range(P)]
        self.population = VectorizedPopulation(
            self.network,
            seeds,
            num_envs=E,
            gamma=config.per_member("gamma"),
            lr=config.per_member("lr"),
            adam_eps=config.adam_eps,
            clip_norm=config.per_member("clip_norm"),
            ema_decay=config.ema_decay,
            chrono_span=config.chrono_span,
            memory=config.memory,
            compute_dtype=getattr(torch, config.compute_dtype),
            device=device,
        )
        self.replay = SequentialReplayBuffer(
            seeds=seeds, prioritised=config.prioritised, alpha=config.alpha, beta=config.beta, device=device, **sizes
        )
        self.learner = Learner(
            self.population,
            self.replay,
            td_spec(config, self.population),
            batch_size=config.batch_size,
            sync_every=1 if config.tau is not None else config.sync_every,
            tau=config.tau,
            stored_state=config.stored_state,
            td_unroll=td_unroll,
            graph=config.cuda_graph and device.type == "cuda",
        )
        self.env_steps = 0
        self.elapsed = 0.0
        self._seconds = {"update": 0.0, "eval": 0.0}
        self.evaluations: deque[tuple[int, Evaluation]] = deque(maxlen=100)
        self.stopped_by: signal.Signals | None = None
        self._learned = Means()
        self._mark = (0.0, 0, 0)  # elapsed, env_steps, updates at the last record
        self.schedules = Schedules(config)
        self.pbt = PopulationBasedTraining(
            {name: config.per_member(name) for name in config.pbt_explore},
            seed=config.seed,
            fraction=config.pbt_fraction,
            perturb=config.pbt_perturb,
            resample=config.pbt_resample,
        )
        self.folder = self._open_folder(folder, config.run_dir is not None if record is None else record)

    def _open_folder(self, folder: str | Path | None, record: bool) -> Path | None:
        if self.config.wandb is not None:
            require_wandb()
        if folder is None and not record:
            return None
        if folder is not None:
            return Path(folder)
        folder = new_folder(self.config.run_dir, self.config.env)
        try:
            self.config.to_yaml(folder / "config.yaml")
        except OSError:
            folder.rmdir()
            raise
        return folder

    @property
    def updates(self) -> int:
        """The updates made so far. Every member takes part in each."""
        return self.learner.updates

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds spent so far in each phase: act, env, replay, update, eval."""
        return {**self.rollout.seconds, **self._seconds}

    # ---- one iteration ----------------------------------------------------------------------------------------------

    def epsilon(self) -> Tensor:
        """The share of random actions now, float64 ``[P, E]``."""
        return self.schedules.epsilon(self.env_steps)

    def act_step(self) -> None:
        """Take one step of every environment and store it with the state that came before its observation."""
        self.env_steps += self.rollout.step(self.population, self.replay, self.epsilon())

    def updates_due(self) -> int:
        """How many updates the replay ratio calls for after the steps taken so far."""
        return self.config.updates_after(self.env_steps)

    def learn(self) -> None:
        """Make the updates that are due and not yet made."""
        begun = time.perf_counter()
        if self.config.lr_decay_steps:
            self.schedules.set_lr(self.population, self.env_steps)
        while self.updates < self.updates_due():
            self._learned.add(self.learner.update())
        self._seconds["update"] += time.perf_counter() - begun

    def _exploit_and_explore(self) -> None:
        """Run the event of population based training that is due at this step, if there is one."""
        c = self.config
        if not (self.updates and _crossed(self.env_steps, c.num_envs, c.pbt_every)):
            return
        scores = self.rollout.episodes.recent
        if c.pbt_score == "eval":
            fresh = self.evaluations and self.evaluations[-1][0] == self.env_steps
            scores = (self.evaluations[-1][1] if fresh else self.evaluate()).score.mean(axis=1)
        members, parents = self.pbt.step(self.env_steps // c.pbt_every, self.env_steps, scores, self.schedules.hyper)
        if members:
            self.population.copy_members(members, parents)
            self.rollout.episodes.recent[members] = self.rollout.episodes.recent[parents]
            self.schedules.apply(self.population, self.env_steps)
            copies = ", ".join(f"{p} -> {m}" for m, p in zip(members, parents, strict=True))
            self.say(f"step {self.env_steps:,}: members copied: {copies}")
        if self.folder is not None:
            self.pbt.write(self.folder / "lineage.csv")

    # ---- the run ----------------------------------------------------------------------------------------------------

    def train(self, progress: Progress | None = None) -> None:
        """Train until ``total_steps``, SIGINT or SIGTERM. A run with a folder then writes a last checkpoint.

        Args:
            progress: shows the run to a person; None shows nothing.

        Raises:
            OSError: a file of the folder cannot be written. The message names it, and the last checkpoint is intact.
            CheckpointError: a checkpoint cannot be written. The one before it is intact.
            ValueError: another process trains in this folder, a world failed, or weights are not finite. The message
                says where.
        """
        with stop_signals() as stop:
            if self.folder is None:
                self._loop(stop, None, progress)
                return
            with only_writer(self.folder):
                if self.config.pbt_every:  # an interrupted run may have written copies that are now made again
                    self.pbt.write(self.folder / "lineage.csv")
                for path in checkpoint.set_aside_after(self.folder / "checkpoints", self.env_steps):
                    self.say(f"{path}: set aside: newer than the checkpoint being resumed")
                self.config.to_yaml(self.folder / "config.yaml")
                note_session(self.folder, self.env_steps)
                project = self.config.wandb
                also = WandbLog(self.folder, project, self.config.to_dict(), self.say) if project is not None else None
                with closing(Records(self.folder, step=self.env_steps, also=also)) as records:
                    self._loop(stop, records, progress, LiveReport(self.folder, self.say))

    def _loop(
        self,
        stop: list[signal.Signals],
        records: Records | None,
        progress: Progress | None,
        page: LiveReport | None = None,
    ) -> None:
        c, E = self.config, self.config.num_envs
        begun, before = time.perf_counter(), self.elapsed
        saved_at = -1
        while self.env_steps < c.total_steps and not stop:
            if self.rollout.enter_stage(self.env_steps, self.population, self.replay):
                stage = f"stage {self.rollout.stage + 1} of {len(c.stages)}"
                self.say(f"{stage} at step {self.env_steps:,}")
            self._exploit_and_explore()
            self.act_step()
            self.learn()
            self.elapsed = before + time.perf_counter() - begun
            evaluated = _crossed(self.env_steps, E, c.eval_every)
            if evaluated:
                self.evaluate()
                if self.folder is not None:
                    self.save_agent()
            if evaluated or _crossed(self.env_steps, E, c.log_every) or self.env_steps >= c.total_steps:
                self._record(records)
            if page is not None and _crossed(self.env_steps, E, c.checkpoint_every):
                self.save(records)
                saved_at = self.env_steps
                page.update()
            if records is not None:
                records.beat("training", self.env_steps, self.updates, self.elapsed)
            if progress is not None:
                progress.show(self.env_steps, self.updates, self._score_text)
        self.stopped_by = stop[0] if stop else None
        if self.folder is not None and saved_at != self.env_steps:
            self.save(records)
        if records is not None:
            records.beat("stopped" if stop else "trained", self.env_steps, self.updates, self.elapsed)

    def evaluate(self) -> Evaluation:
        """Play greedy episodes with every member, in worlds and with a state of their own.

        The training state is not touched. The result is also appended to ``evaluations``.
        """
        begun = time.perf_counter()
        c = self.config
        result = evaluate(
            self.network,
            self.population.averaged,
            self.evaluation_worlds,
            c.eval_episodes,
            c.seed,
            memory=c.memory,
            max_steps=c.eval_max_steps,
        )
        self.evaluations.append((self.env_steps, result))
        self._seconds["eval"] += time.perf_counter() - begun
        return result

    def evaluation_worlds(self, n: int) -> VectorAdapter:
        """Open ``n`` evaluation environments, which the caller closes."""
        c = self.config
        return open_worlds(c, n, c.evaluation_args, self.make, workers=c.workers)

    def _record(self, records: Records | None) -> None:
        self.population.check()
        seconds, steps, updates = (a - b for a, b in zip(self._now(), self._mark, strict=True))
        self._mark = self._now()
        P = self.config.members
        common = {"seconds": self.elapsed, "updates": self.updates}
        common |= {f"{k}_s": v for k, v in self.seconds.items()}
        common |= {"steps_per_s": steps * P / max(seconds, 1e-9), "updates_per_s": updates / max(seconds, 1e-9)}
        common["replay_fill"] = len(self.replay) / (self.replay.ring * self.config.num_envs)
        columns: dict[str, np.ndarray] = {"epsilon": self.epsilon().mean(dim=1).numpy(), **self.schedules.hyper}
        columns["lr_now"] = self.population.lr.cpu().numpy()
        columns |= self.rollout.episodes.drain() | self._learned.drain()
        columns |= {name: value.cpu().numpy() for name, value in self.population.acting_metrics().items()}
        if self.evaluations and self.evaluations[-1][0] == self.env_steps:
            result = self.evaluations[-1][1]
            columns["eval_return"] = result.returns.mean(axis=1)
            if result.survival is not None:
                columns["eval_survival"] = result.survival.mean(axis=1)
        if records is not None:
            records.add(self.env_steps, common, [{k: float(v[p]) for k, v in columns.items()} for p in range(P)])

    def _now(self) -> tuple[float, int, int]:
        return self.elapsed, self.env_steps, self.updates

    def _score_text(self) -> str:
        evaluation = self.evaluations[-1][1] if self.evaluations else None
        return score_text(self.rollout.episodes, evaluation, self.schedules.hyper)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, records: Records | None = None) -> Path:
        """Write a checkpoint into the run folder, after the ``records`` are safe on the disk.

        Args:
            records: the open records of the run, if there are any.

        Returns:
            The checkpoint's path.

        Raises:
            ValueError: the run has no folder, or weights are not finite.
            CheckpointError: the checkpoint cannot be written. Earlier ones stay.
        """
        if self.folder is None:
            raise ValueError("folder is None; expected a run folder to save into")
        self.population.check()
        if records is not None:
            records.sync()
        folder, keep = self.folder / "checkpoints", self.config.keep_checkpoints
        path = checkpoint.save(folder, self.env_steps, self.state_dict(), keep)
        self.save_agent()
        return path

    def save_agent(self) -> None:
        """Write agent.ckpt into the run folder: the settings, and the weights that evaluation plays with.

        The file has about a hundredth of a checkpoint's size. ``townlet serve`` reads it while the run trains.

        Raises:
            CheckpointError: the file cannot be written. The earlier one stays.
        """
        assert self.folder is not None
        weights = {name: value.detach() for name, value in self.population.averaged.items()}
        tree = {"config": self.config.to_dict(), "env_steps": self.env_steps, "weights": weights}
        tree["hyper"] = self.schedules.state_dict()
        checkpoint.write_file(self.folder / "agent.ckpt", {"kind": "townlet-agent", **tree}, durable=False)

    @classmethod
    def resume(cls, run: str | Path, overrides: Mapping[str, Any] | None = None, **arguments: Any) -> Trainer:
        """Continue the run in folder ``run`` (or from one of its checkpoint files) as if it had never stopped.

        A run that was killed before its first checkpoint begins anew. A damaged checkpoint is reported through ``say``,
        and the one before it is used.

        Args:
            run: the run folder, or one of its checkpoint files.
            overrides: settings to change; only those in ``CHANGEABLE_ON_RESUME`` may be.
            **arguments: further arguments of `Trainer`, such as ``say``.

        Raises:
            CheckpointError: there is no run, or none of its checkpoints is whole.
            ValueError: ``overrides`` holds a setting that cannot change.
        """
        stopped = stopped_run(run, overrides or {}, arguments.get("say", warnings.warn))
        if stopped.tree is None:
            return cls(stopped.config, folder=stopped.folder, **arguments)
        trainer = cls(stopped.config, folder=stopped.folder, **arguments)
        try:
            trainer.load_state_dict(stopped.tree)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            what = f"{stopped.source} does not hold what this run needs ({error!r})"  # though its checksum is right
            raise checkpoint.CheckpointError(what) from error
        return trainer

    def state_dict(self) -> dict[str, Any]:
        """Everything the run needs to go on, as plain values, tensors and arrays."""
        return {
            "kind": "townlet-run",
            "config": self.config.to_dict(),
            "env_steps": self.env_steps,
            "elapsed": self.elapsed,
            "population": self.population.state_dict(),
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            **self.rollout.state_dict(),
            "seconds": self.seconds,
            "hyper": self.schedules.state_dict(),
            "pbt": self.pbt.state_dict(),
            "learned": self._learned.state_dict(),
        }

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        The run it comes from must have the same settings, except those in ``CHANGEABLE_ON_RESUME``.

        Raises:
            ValueError: a setting or a part of the state differs.
        """
        mine = self.config.to_dict()
        for name, value in tree["config"].items():
            if name not in CHANGEABLE_ON_RESUME and mine.get(name) != value:
                raise ValueError(f"{name} is {mine.get(name)!r}; expected {value!r}, as in the checkpoint")
        why_not = self.rollout.load_state_dict(tree)
        self.env_steps, self.elapsed = int(tree["env_steps"]), float(tree["elapsed"])
        self._seconds = {name: float(tree["seconds"][name]) for name in self._seconds}
        self.population.load_state_dict(tree["population"])
        self.learner.load_state_dict(tree["learner"])
        self.replay.load_state_dict(tree["replay"])
        self.schedules.load_state_dict(tree["hyper"])
        self.schedules.apply(self.population, self.env_steps)
        self.pbt.load_state_dict(tree["pbt"])
        self._learned.load_state_dict(tree["learned"], self.population.device)
        self._mark = self._now()
        if why_not is not None:
            self.say(
                f"resume: {why_not}; every environment starts a fresh episode and the cut one is "
                "stored as truncated, so this run is not a bit-exact continuation"
            )
            self.rollout.cut_episodes(self.population, self.replay)


# ---- parts ----------------------------------------------------------------------------------------------------------


def _crossed(now: int, step: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (now - step, now]; never for ``every`` = 0."""
    return every > 0 and now // every > (now - step) // every
