"""How far a training is: a bar with the time that is left, measured in operations, and a log of steps.

steps.csv   a line every few minutes: means over the steps since the last line; appended, and never read here.
            After a kill steps are done again, and stand there again.
"""

import sys
import time
from pathlib import Path

from tqdm import tqdm

from .lock import no_follow
from .memory import anonymous_memory
from .training_state import tell

LOG_MINUTES = 3.0
STEP_COLUMNS = (
    "epoch", "step", "updates", "loss", "gradient_norm", "rate", "frames_per_second", "anonymous_mb", "seconds",
)  # fmt: skip


class Progress:
    """For `with`.  plan: Plan; state: TrainingState, restored; shown: is there a bar; slot: its line."""

    def __init__(self, plan, state, folder, shown=True, slot=None):
        self.plan, self.state, self.path = plan, state, Path(folder) / "steps.csv"
        self.bar = tqdm(
            total=float(plan.work[-1]), initial=plan.flop_before(state.epoch, state.done_in_epoch), desc=state.name,
            unit="FLOP", unit_scale=True, disable=not shown, position=slot, leave=False, smoothing=0.1,
            mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True,
        )  # fmt: skip
        self._begin_line()

    def __enter__(self):
        asked, plan = self.plan.settings.warmup_steps, self.plan
        if plan.warmup < asked and not self.bar.disable:
            tell(
                f"{self.state.name}: warmup_steps={asked} is more than a fifth of its {plan.updates} updates, so the "
                f"learning rate grows over the first {plan.warmup} of them."
            )
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def _begin_line(self):
        self.since, self.steps, self.frames, self.loss, self.norm = time.monotonic(), 0, 0, 0.0, 0.0

    def step(self, indices, means, rate):
        """A step on these utterances is done, with this learning rate; means as train_step returns them."""
        self.bar.update(self.plan.flop_of([indices]))
        self.bar.set_postfix(epoch=self.state.epoch + 1, loss=f"{self.state.smooth_loss:.2f}", refresh=False)
        self.frames += int(sum(self.plan.part.store.lengths[i] for i in indices))
        if means is not None:
            self.steps += 1
            self.loss, self.norm = self.loss + means[0], self.norm + means[-1]
        if time.monotonic() - self.since > 60 * LOG_MINUTES:
            self._write_line(rate)
            self._begin_line()

    def _write_line(self, rate):
        state, n, seconds = self.state, max(1, self.steps), time.monotonic() - self.since
        memory = anonymous_memory()
        line = [
            state.epoch + 1, state.step, state.adam.steps, round(self.loss / n, 4), round(self.norm / n, 4),
            f"{rate:.4g}", round(self.frames / seconds), None if memory is None else round(memory / 1e6, 1),
            round(state.seconds + time.monotonic() - state.saved_at, 1),
        ]  # fmt: skip
        try:
            with open(self.path, "a", encoding="utf-8", opener=no_follow) as file:
                if not file.tell():
                    file.write(",".join(STEP_COLUMNS) + "\n")
                file.write(",".join("" if x is None else str(x) for x in line) + "\n")
        except OSError:  # a full disk: a line of the log is not worth a training
            pass
