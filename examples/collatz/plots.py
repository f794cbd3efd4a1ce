"""A plot in a file, where matplotlib is installed."""

import sys


def save_plot(path, draw):
    """Writes what `draw(axes)` draws, with its legend; says so where there is no matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    draw(axes)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
