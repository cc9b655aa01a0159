"""Figures of an inspection: spectra before and after training, Φ as attention-like maps, effective memory.

Like `plots`, it needs matplotlib, an extra of the library.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .inspection import Inspection, LayerInspection
from .plots import COLOURS, save, style
from .spectrum import PHASES, SpectrumComparison

__all__ = ["draw_inspection", "heat_map_figure", "memory_figure", "spectrum_figure"]

MOST_HEADS = 16
"""Heads that one figure of heat maps shows."""
_BLUE, _ORANGE = COLOURS[:2]


def draw_inspection(inspection: Inspection, folder: Path) -> list[str]:
    """Write all figures of an inspection into a folder, and return their names."""
    layers = [one.layer for one in inspection.layers]
    figures = {"spectrum.png": spectrum_figure(inspection.spectra, layers)}
    if _has_phases(inspection.spectra):
        figures["phases.png"] = spectrum_figure(inspection.spectra, layers, phases=True)
    for one in inspection.layers:
        if one.weights is not None:
            weights = one.weights[0]
            real = int((weights.sum((0, -1)) > 0).sum())
            title = f"layer {one.layer} ({one.architecture})" + (", first row" if len(one.weights) > 1 else "")
            figures[f"phi_layer_{one.layer}.png"] = heat_map_figure(weights[:, :real, :real], title)
    if any(one.memory is not None for one in inspection.layers):
        figures["effective_memory.png"] = memory_figure(inspection.layers)
    for name, figure in figures.items():
        save(figure, folder / name)
    return list(figures)


def spectrum_figure(spectra: SpectrumComparison, layers: Sequence[int], phases: bool = False) -> Figure:
    """Return the share of |λ| (or of |arg λ|) in each interval, a row of axes a layer.

    Left: the mean over heads, as initialised and now, with the standard deviation over rows. Right: every head, now.

    Args:
        spectra: of all layers of a model.
        layers: those to draw.
        phases: whether phases are drawn instead of radii.
    """
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(layers)), layout="constrained")
    grid = figure.subplots(len(layers), 2, squeeze=False, width_ratios=(3, 2))
    names = PHASES.names if phases else spectra.now.bins.names
    for (bars, heads), layer in zip(grid, layers, strict=True):
        reason = spectra.now.reasons[layer]
        if reason is not None:
            _say(bars, f"layer {layer}: no λ\n{reason}")
            heads.set_axis_off()
            continue
        _draw_bars(bars, spectra, layer, names, phases)
        _draw_heads(heads, spectra, layer, names, phases)
    figure.supxlabel("|arg λ| in degrees" if phases else "|λ|")
    return figure


def heat_map_figure(weights: Tensor, title: str) -> Figure:
    """Return an attention-like map for each head: |Φ_ij| of output i (down) and input j (across), rows adding up to 1.

    Args:
        weights: |Φ| without D, (h, t, t); see `magnitude`. At most 16 heads are shown.
        title: what the figure shows.
    """
    shown = weights[:MOST_HEADS].double().cpu()
    shares = shown / shown.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.4 * columns + 0.8, 2.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    image = None
    for head, (axis, share) in enumerate(zip(axes, shares, strict=False)):
        image = axis.imshow(share.sqrt().numpy(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"head {head}", fontsize=9)
        axis.tick_params(labelsize=7)
        _whole_numbers(axis)
    bar = figure.colorbar(image, ax=axes.tolist(), ticks=[0, 0.1**0.5, 0.5**0.5, 1], shrink=0.8)
    bar.ax.set_yticklabels(["0", "0.1", "0.5", "1"])
    bar.set_label("share of the row")
    more = f", first {len(shown)} of {len(weights)} heads" if len(weights) > len(shown) else ""
    figure.suptitle(f"|Φ_ij| without D, {title}{more}", fontsize=11)
    return figure


def memory_figure(layers: Sequence[LayerInspection]) -> Figure:
    """Return the effective memory at each position: the mean over rows and heads of a layer, a line each."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(one for one in layers if one.memory is not None):
        lag = one.memory.lag.nanmean((0, 1)).cpu()
        look = style(index) | {"markersize": 3, "markevery": max(1, len(lag) // 12)}
        axes.plot(range(len(lag)), lag.tolist(), label=f"layer {one.layer} ({one.architecture})", **look)
    _whole_numbers(axes)
    share = next(one.memory.share for one in layers if one.memory is not None)
    axes.set_xlabel("position")
    axes.set_ylabel(f"lag within which {100 * share:g} % of Σ_j |Φ_ij| lies")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=1 + len(layers) // 12)
    return figure


def _draw_bars(axes: Axes, spectra: SpectrumComparison, layer: int, names: Sequence[str], phases: bool) -> None:
    series = [(spectra.initial, "initial", _BLUE), (spectra.now, "now", _ORANGE)]
    for place, (histogram, label, colour) in enumerate(series):
        counts = (histogram.phase_counts if phases else histogram.counts)[layer]
        by_row = (counts / counts.sum(-1, keepdim=True)).nanmean(0)
        centre = 100 * by_row.nanmean(0)
        spread = 100 * by_row.std(0) if len(by_row) > 1 else torch.zeros_like(centre)
        spread = spread.nan_to_num(0.0)
        positions = [index + 0.4 * (place - 0.5) for index in range(len(names))]
        whiskers = torch.stack([torch.minimum(spread, centre), spread]).numpy()
        axes.bar(
            positions, centre.tolist(), width=0.38, color=colour, label=label, yerr=whiskers, capsize=2, ecolor="0.3"
        )
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(0, 110)
    axes.set_ylabel("%")
    axes.set_title(f"layer {layer}, {spectra.now.realisations[layer]} realisation", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def _draw_heads(axes: Axes, spectra: SpectrumComparison, layer: int, names: Sequence[str], phases: bool) -> None:
    shares = (spectra.now.phase_fractions if phases else spectra.now.fractions)[layer]
    shares = shares[~shares.isnan().all(1)]
    axes.imshow(100 * shares.numpy(), cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=45)
    axes.tick_params(axis="y", labelsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("head", fontsize=8)
    axes.set_title("now, % of each head (0 dark, 100 bright)", fontsize=8)


def _whole_numbers(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _has_phases(spectra: SpectrumComparison) -> bool:
    """Whether some eigenvalue is complex or negative."""
    return any(bool(one.phase_counts[..., 1:].nansum() > 0) for one in (spectra.initial, spectra.now))


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.0, 0.5, text, transform=axes.transAxes, va="center", fontsize=8, wrap=True)
