"""The report's charts, as SVG that follows the colours of the page around it."""

import html
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from jaxvqa.explain import overlay
from jaxvqa.report.numbers import integer, significant
from jaxvqa.report.run import Record

# Stand-ins that become CSS variables in the SVG, so that the charts follow the page's light and dark colours.
_INK, _LINE, _OURS, _BASE, _SOFT = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
VARIABLES = {_INK: "--quiet", _LINE: "--line", _OURS: "--accent", _BASE: "--baseline", _SOFT: "--accent-soft"}


def charts(record: Record, baseline: Record | None, name: str, scores: Sequence[str] = ()) -> list[dict[str, str]]:
    """The curves of an evaluation's accuracy, of other scores and of training: title, a sentence, and the SVG."""
    drawn = [
        accuracy_chart(record, baseline, name),
        *(line_chart(record, score, score, "%") for score in scores),
        gate_chart(record),
        line_chart(record, "train/loss", "Training loss", "for each question"),
        line_chart(record, "train/learning_rate", "Learning rate", ""),
        line_chart(record, "train/gradient_norm", "Gradient norm", "before clipping", log=True),
    ]
    return [chart for chart in drawn if chart]


def accuracy_chart(record: Record, baseline: Record | None, name: str) -> dict[str, str] | None:
    """Validation accuracy over the steps with its interval as a band, the baseline's, and the training batches'."""
    steps, values = record.series(f"{name}/accuracy")
    if not steps:
        return None

    def draw(axes: Axes) -> None:
        train_steps, train = record.series("train/accuracy")
        if len(train) > 1:
            axes.plot(
                train_steps, [100 * v for v in train], color=_INK, linewidth=1, alpha=0.6, label="training batches"
            )
        for r, colour in ((baseline, _BASE), (record, _OURS)):
            if r is None or not r.series(f"{name}/accuracy")[0]:
                continue
            x, y = r.series(f"{name}/accuracy")
            axes.plot(
                x, y, color=colour, linewidth=2.2, marker="o", markersize=4, label=overlay.plain(f"{name}: {r.label}")
            )
            low, high = r.series(f"{name}/accuracy/low"), r.series(f"{name}/accuracy/high")
            if low[0] == high[0] == x:
                axes.fill_between(x, low[1], high[1], color=colour, alpha=0.18, linewidth=0)
        axes.set_ylabel("accuracy (%)")
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)

    words = f"From {values[0]:.1f} % at step {integer(steps[0])} to {values[-1]:.1f} % at step {integer(steps[-1])}."
    if baseline and baseline.series(f"{name}/accuracy")[0]:
        words += f" {baseline.label.capitalize()}: {baseline.series(f'{name}/accuracy')[1][-1]:.1f} % at its end."
    return {
        "title": f"Accuracy on {name}",
        "words": words,
        "svg": svg(draw, f"Accuracy on {name}. {words}", "accuracy"),
    }


def line_chart(record: Record, key: str, title: str, unit: str, *, log: bool = False) -> dict[str, str] | None:
    """One metric over the steps."""
    steps, values = record.series(key)
    if not steps:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(steps, values, color=_OURS, linewidth=1.8, marker="o" if len(steps) == 1 else None)
        if log and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_ylabel(unit)

    first, last = (f"{significant(values[i])} at step {integer(steps[i])}" for i in (0, -1))
    words = f"From {first} to {last}."
    return {"title": title, "words": words, "svg": svg(draw, f"{title}. {words}", key.replace("/", "-"))}


def gate_chart(record: Record) -> dict[str, str] | None:
    """How far each cross-attention is open: tanh of its gates, 0 where images change nothing (`jaxvqa.models.flamingo`)."""
    keys = sorted({key for row in record.run.metrics for key in row if key.startswith("train/gate/")})
    if not keys:
        return None
    final = {key.removeprefix("train/gate/"): record.series(key)[1][-1] for key in keys}

    def draw(axes: Axes) -> None:
        for key in keys:
            colour, style = (_OURS, "-") if key.endswith("/attention") else (_BASE, (0, (4, 2)))
            axes.plot(*record.series(key), color=colour, linestyle=style, linewidth=1.6)
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.plot([], [], color=_OURS, label="attention")
        axes.plot([], [], color=_BASE, linestyle=(0, (4, 2)), label="feed-forward")
        axes.set_ylabel("tanh(gate)")
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)

    words = "At the end " + ", ".join(f"{name} {value:.2f}" for name, value in final.items()) + "."
    return {"title": "Gates of the cross-attentions", "words": words, "svg": svg(draw, words, "gates")}


def calibration_chart(bins: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy against probability, a dot for each bin with an area by its number of questions."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        x, y, n = (np.array(column) for column in zip(*bins, strict=True))
        axes.scatter(100 * x, 100 * y, s=14 + 380 * n / n.max(), color=_OURS, alpha=0.75, linewidths=0, clip_on=False)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("probability of the answer (%)")
        axes.set_ylabel("accuracy (%)")

    words = "; ".join(f"{n} answers at {100 * p:.0f} % are {100 * a:.0f} % accurate" for p, a, n in bins)
    return svg(draw, f"Probability against accuracy: {words}.", "calibration", x_label="", size=(4.6, 3.5))


def svg(
    draw: Callable[[Axes], None],
    description: str,
    name: str,
    *,
    x_label: str = "step",
    size: tuple[float, float] = (5.0, 2.9),
) -> str:
    """Draws a chart as SVG to be put into HTML: colours are the page's variables, ids begin with `name`."""
    page = Figure(figsize=size, layout="constrained")
    page.patch.set_alpha(0)
    FigureCanvasSVG(page)
    axes = page.add_subplot(facecolor="none")
    if x_label:
        axes.set_xlabel(x_label)
    draw(axes)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_INK, labelsize=9.5, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=9.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        page.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    alt = html.escape(description)
    # Without fixed sizes the chart takes the width of its place; the viewBox keeps its shape.
    head = re.sub(r' (?:width|height)="[^"]*"', "", text[: text.index(">")]) + f' role="img" aria-label="{alt}"'
    return head + text[text.index(">") :]
