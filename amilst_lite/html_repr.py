"""What a notebook shows of a fitted `AMILST`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .estimator import AMILST

__all__ = ["model_html"]

_MOST_ROWS = 30


def model_html(model: AMILST) -> str:
    """Return a fitted model as HTML: its domains, what was decided, settings, seconds.

    Parameters
    ----------
    model : AMILST
        After `fit`, or loaded from a file, which does not hold the spots of training.

    Returns
    -------
    str
        One ``div`` in the colors of the page around it; every text is escaped.
    """
    labels = getattr(model, "labels_", None)
    chosen = getattr(model, "selection_", None) is not None
    spots = "loaded, without the spots of training" if labels is None else f"{len(labels):,} spots"
    title = (
        f"AMILST: {model.n_domains_} domains{' (chosen by held-out spots)' if chosen else ''}, {spots}, "
        f"{model.n_features_in_} features"
    )
    parts = [f"<strong>{_text(title)}</strong>"]
    if labels is not None:
        parts.append(_domains(labels, model.confidence_))
    parts.append(_details("Parameters", model.get_params(deep=False).items()))
    decided = _decided(model)
    if decided:
        parts.append(_details("Decided from the data", decided))
    seconds = getattr(model, "seconds_", {})
    if seconds:
        parts.append(_details("Seconds", [(name, f"{value:.2f}") for name, value in seconds.items()]))
    return f'<div style="font-size: 0.95em">{"".join(parts)}</div>'


def _domains(labels: np.ndarray, confidence: np.ndarray) -> str:
    sizes = np.bincount(labels)
    mean = np.bincount(labels, confidence) / np.maximum(sizes, 1)
    rows = []
    for k, (size, sure) in enumerate(zip(sizes[:_MOST_ROWS], mean, strict=False)):
        share = size / len(labels)
        bar = (
            f'<div style="width: {max(round(120 * share), 1)}px; height: 0.7em; background: currentColor; '
            'opacity: 0.5"></div>'
        )
        rows.append([str(k), f"{size:,}", f"{100 * share:.1f} %", bar, f"{sure:.2f}"])
    more = f"<p>and {len(sizes) - _MOST_ROWS} more domains</p>" if len(sizes) > _MOST_ROWS else ""
    return _table(["domain", "spots", "share", "", "mean confidence"], rows) + more


def _decided(model: AMILST) -> list[tuple[str, Any]]:
    """What was decided from held-out data or by the data themselves."""
    decided: list[tuple[str, Any]] = []
    selection = getattr(model, "selection_", None)
    if selection is not None:
        decided.append(("number of domains", selection.n_domains))
    config = model.config_
    if config.cluster.network_share is not None:
        decided.append(("share of the network", f"{config.cluster.network_share:.3g}"))
    effect = getattr(model, "section_effect_", None)
    if effect is not None:
        decided.append(("section effects", effect.method))
    return decided


def _details(summary: str, pairs: Iterable[tuple[str, Any]]) -> str:
    rows = [[_text(name), _text(value)] for name, value in pairs]
    return f"<details><summary>{_text(summary)}</summary>{_table([], rows)}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of markup."""
    heads = f"<thead><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{heads}<tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
