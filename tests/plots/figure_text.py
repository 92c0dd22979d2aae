"""What is written in a figure, and where its texts collide."""

import itertools

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg


def panel_titles(figure):
    """The titles of a figure's panels: the first text of each."""
    return {axes.texts[0].get_text() for axes in figure.axes} | {
        text.get_text() for axes in figure.axes for text in axes.texts if text.get_weight() == "bold"
    }


def overlapping_texts(figure):
    """Pairs of visible texts whose boxes intersect, and texts that leave the figure."""
    FigureCanvasAgg(figure).draw()
    hidden = {text for axes in figure.axes for text in _undrawn_tick_labels(axes)}
    found = figure.findobj(lambda artist: isinstance(artist, mpl.text.Text) and artist.get_text().strip())
    texts = [text for text in found if text.get_visible() and text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    pairs = [(one, two) for (one, a), (two, b) in itertools.combinations(boxes, 2) if _intersect(a, b)]
    return pairs + [name for name, box in boxes if _leaves(box, figure.bbox)]


def _undrawn_tick_labels(axes):
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def _leaves(box, edge):
    return box.x0 < -1 or box.x1 > edge.x1 + 1 or box.y0 < -1 or box.y1 > edge.y1 + 1


def _intersect(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
