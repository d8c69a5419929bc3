"""Plots as PNG files, drawn with matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure_class", "robust_accuracy_plot"]

# Okabe and Ito's colours, told apart with any colour vision; markers and dashes tell them apart in grey.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "marker": "o", "linestyle": ":"},
    {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    {"color": "#0072B2", "marker": "^", "linestyle": "-"},
    {"color": "#009E73", "marker": "D", "linestyle": "-"},
)
PANELS = {
    "linf": ("L∞ attacks", "size of the attack: largest change of a pixel (pixels in [0, 1])"),
    "l2": ("L2 attacks", "size of the attack: L2 norm of the change (pixels in [0, 1])"),
}


def figure_class() -> type[Figure]:
    """Import matplotlib.

    Returns:
        Its `Figure`, which draws to files without any global state.

    Raises:
        ImportError: when matplotlib is not installed, naming the extra to install.

    Example:
        >>> figure_class().__name__
        'Figure'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "spectralnorm[plot]"') from error
    return Figure


def robust_accuracy_plot(result: Mapping[str, Any]) -> bytes:
    """Plot the accuracy of each training method against the size of the attack, one panel per norm.

    Args:
        result: what `spectralnorm.commands.demo.run` returns.

    Returns:
        The picture, PNG.
    """
    norms = list(result["settings"]["eps"])
    figure = figure_class()(figsize=(5.5 * len(norms), 4.6), layout="constrained")
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    for panel, norm in zip(panels, norms, strict=True):
        _draw(panel, norm, result["methods"])
    panels[0].set_ylabel("accuracy under attack (%)")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    data = result["data"]
    figure.suptitle(
        f"Same small CNN, four ways to train it: {data['name']}, worst case over attacks, "
        f"{data['test_images']} test images",
        fontsize="medium",
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _draw(panel: Axes, norm: str, methods: list[Mapping[str, Any]]) -> None:
    """One panel: a line per method, from its clean accuracy at size 0."""
    for method, style in zip(methods, STYLES, strict=True):
        evaluation = method["evaluation"]
        points = [(0.0, evaluation["clean_accuracy"])]
        points += [(e["eps"], e["robust_accuracy"]) for e in evaluation["worst_case"] if e["norm"] == norm]
        sizes, shares = zip(*points, strict=True)
        panel.plot(sizes, [100 * share for share in shares], label=method["label"], markersize=5, **style)
    title, label = PANELS[norm]
    panel.set(title=title, xlabel=label, ylim=(0, 102))
    panel.set_xlim(left=0)
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
