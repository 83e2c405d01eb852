"""What the training loop leans on: averages and speed, signals to stop, profiles."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvqa import checkpoints
from jaxvqa.errors import DivergedError
from jaxvqa.logs import log
from jaxvqa.tasks import Metrics

_NEWEST = 20
"""Steps whose averages a bar shows."""

_AHEAD = 4
"""Steps that may be under way: enough to keep a device busy, and few batches in its memory; a signal to stop waits for them."""


class Meter:
    """Averages of the metrics since the last flush, speed, and the share of time spent waiting for data.

    Metrics stay on the device until a flush, so that the host runs ahead of the device in between, by `_AHEAD` steps at most.
    """

    def __init__(self, batch_size: int):
        """Args: examples a step."""
        self._batch_size = batch_size
        self._pending: list[tuple[int, Metrics]] = []
        self._started = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the speed."""
        start = time.perf_counter()
        yield
        self._started += time.perf_counter() - start

    def add(self, step: int, metrics: Metrics) -> None:
        """Keeps a step's metrics, still on the device, and waits for those of `_AHEAD` steps before."""
        self._pending.append((step, metrics))
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD][1])

    def flush(self, last_good: int | None) -> dict[str, float]:
        """Fetches and averages what was added.

        Raises:
          DivergedError: names the first step and metric that is not finite.
        """
        fetched = jax.device_get(self._pending)
        for step, metrics in fetched:
            bad = {name: float(total) for name, (total, _) in metrics.items() if not np.isfinite(total)}
            if bad:
                raise DivergedError(
                    f"Step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}. Training stopped; "
                    f"{checkpoints.kept(last_good)}. "
                    "Lower config.optim.lr, set config.optim.clip_norm, or look at the data of that step."
                )
        values = self._averages([metrics for _, metrics in fetched])
        self._pending, self._started, self._waited = [], time.perf_counter(), 0.0
        return values

    def latest(self) -> dict[str, float]:
        """Averages as those of `flush`, of the newest steps that are done: nothing is waited for. Empty where none is."""
        done = [metrics for _, metrics in self._pending if all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))]
        return self._averages(jax.device_get(done[-_NEWEST:])) if done else {}

    def _averages(self, fetched: list[Any]) -> dict[str, float]:
        sums = {
            name: [np.sum(column) for column in zip(*(m[name] for m in fetched), strict=True)] for name in fetched[0]
        }
        seconds = max(time.perf_counter() - self._started, 1e-9)
        values = {f"train/{name}": float(total / max(count, 1e-9)) for name, (total, count) in sums.items()}
        values["train/examples_per_second"] = self._batch_size * len(self._pending) / seconds
        values["train/data_wait"] = self._waited / seconds
        return values


class StopSignal:
    """Notices a request to stop (SIGTERM, or Ctrl-C once), at the same step in every process."""

    def __init__(self) -> None:
        self._asked = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        alone = jax.process_count() == 1
        # With several processes JAX's own coordination notices SIGTERM, so that all stop at one step.
        for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
            with contextlib.suppress(ValueError):  # outside the main thread, signals are not ours to handle
                self._handlers[number] = signal.signal(number, self._ask if alone else self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("stopping after this step …")

    def _pass_on(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second ends at once, even where Python waits for the others
        log.warning("stopping after one of the next steps, as soon as all processes know …")
        os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Profiler:
    """Records the steps "first:last" into WORKDIR/profile, to be opened in TensorBoard or Perfetto."""

    def __init__(self, steps: str, workdir: Path, first_step: int):
        """Args: `config.profile_steps` ("" for none), where to write, and the step that the run starts from."""
        self._folder, self._running = workdir / "profile", False
        first, last = (int(n) for n in steps.split(":")) if steps else (0, -1)
        self._first, self._last = max(first, first_step + 1), last

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("profile written to %s", self._folder)

    def before(self, step: int) -> None:
        """Starts or stops the recording before a step."""
        if self._running and step > self._last:
            self._stop()
        if not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
