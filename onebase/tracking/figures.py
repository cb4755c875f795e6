"""Figures as SVG files: they open anywhere, hold no script and have the same bytes for the same numbers."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onebase.files.writing import replace_file

BLUE, GREY, ORANGE, GREEN, PURPLE = "#3465a4", "#8a8a8a", "#c4660a", "#3a7d34", "#7a4f9a"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
"""For things side by side. Grey is for the background."""


def save(draw: Callable[[Axes], None], target: Path) -> Path:
    """One pair of axes as a file, replaced as a whole."""
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    draw(figure.add_subplot())
    return write(figure, target)


def write(figure: Figure, target: Path) -> Path:
    """The same for a figure with any axes."""
    stream = io.StringIO()
    # The ids in the file would be random, and its date that of the run. Text stays text: the reader's fonts have the
    # letters that matplotlib's lack.
    with mpl.rc_context({"svg.hashsalt": target.stem, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure.savefig(stream, format="svg", metadata={"Date": None})
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, stream.getvalue())
    return target
