"""Curves and bars as SVG, in the colors of the style sheet, which knows light, dark and printed pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .markup import Markup, element, number

__all__ = ["Curve", "bar", "chart", "stacked_bar", "swatch"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 34.0


@dataclass(frozen=True)
class Curve:
    """Points joined by a line; ``marked`` ones have a filled marker, the others an open one."""

    name: str
    x: np.ndarray
    y: np.ndarray
    marked: np.ndarray | None = None  # (n,), bool; None: no markers
    error: np.ndarray | None = None  # (n,), length of an error bar to each side

    @property
    def ends(self) -> tuple[np.ndarray, ...]:
        """What the y axis has to include."""
        return (self.y,) if self.error is None else (self.y - self.error, self.y + self.error)


@dataclass(frozen=True)
class _Axis:
    """From values to positions, and where its ticks are."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        start: float,
        stop: float,
        *,
        logarithmic: bool = False,
        tight: bool = False,
    ) -> _Axis:
        """An axis for the values; it ends at ticks, or at the values if ``tight``."""
        low, high = float(values.min()), float(values.max())
        if logarithmic:
            ticks = sorted(
                one * 10.0**power
                for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                for one in (1, 3)
                if low * 0.999 <= one * 10.0**power <= high * 1.001
            )
            return cls(low, high, start, stop, True, ticks)
        if low == high:
            low, high = low - 0.5, high + 0.5
        step = _nice((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = [i * step for i in range(first, last + 1)]
        if tight:
            return cls(low, high, start, stop, False, [tick for tick in ticks if low <= tick <= high])
        return cls(ticks[0], ticks[-1], start, stop, False, ticks)

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, float(value)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 and 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def _texts(ticks: Sequence[float]) -> list[str]:
    """The ticks as they are written: with four digits, or as many as the distance between two of them needs."""
    error = 0.01 * min(np.diff(ticks), default=math.inf)
    digits = next(n for n in range(4, 18) if all(abs(float(f"{one:.{n}g}") - one) <= error for one in ticks))
    return [number(one, digits) for one in ticks]


def chart(
    curves: Sequence[Curve],
    *,
    title: str,
    description: str,
    x_label: str = "",
    y_label: str = "",
    chosen: float | None = None,
    logarithmic: bool = False,
    size: tuple[float, float] = (420, 240),
) -> Markup:
    """Draw curves over a common axis.

    Parameters
    ----------
    curves : sequence of Curve
        Values that are not finite are left out.
    title, description : str
        For screen readers: what is drawn and what it shows.
    x_label, y_label : str
    chosen : float, optional
        Value of x to mark by a vertical line.
    logarithmic : bool
        Logarithmic x axis; x must be positive.
    size : (float, float)
        Width and height of the view box.
    """
    width, height = size
    kept = [(curve, np.isfinite(curve.x) & np.isfinite(curve.y)) for curve in curves]
    xs = np.concatenate([curve.x[valid] for curve, valid in kept])
    ys = np.concatenate([end[valid] for curve, valid in kept for end in curve.ends])
    x = _Axis.of(xs, _LEFT, width - _RIGHT, logarithmic=logarithmic, tight=True)
    y = _Axis.of(ys, height - _BOTTOM, _TOP)
    parts = [element("title", title), element("desc", description)]
    for tick, text in zip(y.ticks, _texts(y.ticks), strict=True):
        parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", text, x=_LEFT - 5, y=y(tick) + 3.5, text_anchor="end"))
    parts.extend(
        element("text", text, x=x(tick), y=height - _BOTTOM + 14, text_anchor="middle")
        for tick, text in zip(x.ticks, _texts(x.ticks), strict=True)
    )
    if chosen is not None:
        parts.append(element("line", x1=x(chosen), x2=x(chosen), y1=_TOP, y2=y.start, class_="chosen"))
    for i, (curve, valid) in enumerate(kept):
        style = f"c{i % 6}"
        at = [(x(a), y(b)) for a, b in zip(curve.x[valid], curve.y[valid], strict=True)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        if curve.error is not None:
            parts.extend(
                element("line", x1=a, x2=a, y1=y(value - bar), y2=y(value + bar), class_=f"line {style}")
                for (a, _), value, bar in zip(at, curve.y[valid], curve.error[valid], strict=True)
            )
        parts.append(element("polyline", points=points, class_=f"line {style}"))
        if curve.marked is not None:
            parts.extend(
                element("circle", cx=a, cy=b, r=3.5, class_=f"{'dot' if full else 'ring'} {style}")
                for (a, b), full in zip(at, curve.marked[valid], strict=True)
            )
    if x_label:
        middle = (_LEFT + width - _RIGHT) / 2
        parts.append(element("text", x_label, x=middle, y=height - 4, text_anchor="middle", class_="label"))
    drawing = element(
        "svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=f"{title}. {description}",
        class_="chart",
    )  # fmt: skip
    key = None
    if len(curves) > 1:
        key = element(
            "ul",
            *(
                element("li", element("svg", element("line", x1=0, x2=18, y1=6, y2=6, class_=f"line c{i % 6}"),
                                      viewBox="0 0 18 12", class_="key", aria_hidden="true"), curve.name)
                for i, curve in enumerate(curves)
            ),
            class_="keys",
        )  # fmt: skip
    heading = element("figcaption", element("strong", title), " ", element("span", y_label, class_="quiet"))
    return element("figure", heading, drawing, key)


def swatch(color: str) -> Markup:
    """A small disc in a color, of no meaning to screen readers: a name stands beside it."""
    disc = element("circle", cx=6, cy=6, r=5.5, fill=color)
    return element("svg", disc, viewBox="0 0 12 12", class_="swatch", aria_hidden="true")


def bar(share: float, color: str) -> Markup:
    """A horizontal bar; the number stands beside it."""
    filled = element("rect", width=max(100 * float(share), 0.3), height=8, fill=color)
    return element(
        "svg", element("rect", width=100, height=8, class_="track"), filled,
        viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true",
    )  # fmt: skip


def stacked_bar(shares: Sequence[float], colors: Mapping[str, str], name: str) -> Markup:
    """A bar divided into the shares of each label, in the order of ``colors``."""
    parts, start = [], 0.0
    for share, (label, color) in zip(shares, colors.items(), strict=True):
        if share > 0:
            tip = element("title", f"{label}: {100 * share:.1f} %")
            parts.append(element("rect", tip, x=start, width=100 * float(share), height=10, fill=color))
        start += 100 * float(share)
    spoken = ", ".join(
        f"{label} {100 * share:.0f} %" for share, label in zip(shares, colors, strict=True) if share > 0
    )
    return element(
        "svg", *parts, viewBox="0 0 100 10", preserveAspectRatio="none", class_="stack", role="img",
        aria_label=f"{name}: {spoken}",
    )  # fmt: skip
