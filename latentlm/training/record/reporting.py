"""What a run says while it runs: a progress bar on a terminal, plain lines elsewhere, warnings only when quiet.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from latentlm.errors import UserError, shown


class Reporter:
    """Speaks on standard error. Use as a context manager around the steps."""

    def __init__(self, name: str, *, steps: int, quiet: bool = False, silent: bool = False) -> None:
        """`quiet`: warnings only; `silent`: nothing, for a process whose like speaks."""
        self._console = Console(stderr=True)
        self._name, self._steps, self._quiet, self._silent = name, steps, quiet or silent, silent
        self._bar: Progress | None = None

    def start(self, step: int) -> Self:
        """Show the bar, with `step` steps done."""
        if not self._quiet and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
                TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(self._name, total=self._steps, completed=step, numbers="")
        return self

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def step(self, step: int) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def line(self, line: dict[str, Any]) -> None:
        """A line of the metrics."""
        if self._bar is not None and line["split"] == "train":
            self._bar.update(self._task, numbers=_numbers(line))
        elif not self._quiet:
            self._say(self._plain(line))

    def note(self, text: str) -> None:
        """Something worth knowing."""
        if not self._quiet:
            self._say(text)

    def warn(self, text: str) -> None:
        """Something to look at; also said when quiet."""
        self._say(f"warning: {text}")

    def _plain(self, line: dict[str, Any]) -> str:
        if line["split"] == "held_out":
            error = f" ± {line['standard_error']:.3f}" if math.isfinite(line["standard_error"]) else ""
            live = f", {line['live_bits']} of {line['dimensions']} live" if "live_bits" in line else ""
            facts = f"{bound_text(line, error)}, {kl_text(line)}{live}"
            return f"step {line['step']}/{self._steps}  held out: {facts}"
        if line["split"] == "evaluation":
            return f"step {line['step']}/{self._steps}  evaluated: {'; '.join(_measured(line))}"
        left = timedelta(seconds=round(line["elapsed"] / line["step"] * (self._steps - line["step"])))
        return f"step {line['step']}/{self._steps}  {_numbers(line)}  {left} left"

    def _say(self, text: str) -> None:
        if not self._silent:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _measured(line: dict[str, Any]) -> Iterator[str]:
    """What an evaluation line says, a text for the likelihood and for each task."""
    if "likelihood" in line:
        own = line["likelihood"]
        open_end = "" if own["converged"] else " (not converged)"
        yield f"likelihood {own['bits_per_byte']:.4f}{_plus_minus(own['standard_error'])} bits/byte{open_end}"
    for task, own in line.get("tasks", {}).items():
        numbers = (
            f"{shown(name)} {'unknown' if each['value'] is None else format(each['value'], '.4f')}"
            f"{_plus_minus(each['standard_error'])}"
            for name, each in own["metrics"].items()
        )
        yield f"{shown(task)} {', '.join(numbers)}"


def _plus_minus(error: float | None) -> str:
    return "" if error is None or not math.isfinite(error) else f" ± {error:.4f}"


def bound_text(line: dict[str, Any], error: str = "") -> str:
    """The bound of a line, or that there is none."""
    return "no bound" if line["bits_per_byte"] is None else f"bound {line['bits_per_byte']:.3f}{error} bits/byte"


def kl_text(line: dict[str, Any]) -> str:
    """The KL of a line; where there is no bound, since the prior's density has an unknown factor, so has the KL."""
    known = "" if line["bits_per_byte"] is not None else " up to a constant (the prior is not normalised)"
    bits = line["kl_bits_per_token"]
    return f"KL {'unknown' if bits is None else f'{bits:.3f}'} bits/token{known}"


def _numbers(line: dict[str, Any]) -> str:
    share = f"  MFU {line['mfu']:.0%}" if line.get("mfu") is not None else ""
    return f"loss {line['loss']:.4f}  {bound_text(line)}  {line['tokens_per_second']:,.0f} tokens/s{share}"


def _numbered(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as ("a/b", value)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbered(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


class TensorBoard:
    """A view of the metrics for TensorBoard, beside the run. Needs the extra `tensorboard`."""

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                'train.tensorboard needs the package tensorboard: pip install "latentlm[tensorboard]", or set it to false.'
            ) from None
        self._writer = SummaryWriter(folder)  # type: ignore[no-untyped-call]

    def write(self, line: dict[str, Any]) -> None:
        """Every number of a metrics line, as split/key."""
        numbers = dict(_numbered(line))
        for name, value in numbers.items():
            if isinstance(value, int | float) and name not in ("step", "tokens"):
                self._writer.add_scalar(f"{line['split']}/{name}", value, line["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()  # type: ignore[no-untyped-call]
