"""Maps of your own classes: a classifier on the embeddings beneath labels, how good it is, and a map per field.

areas = read_labels("labels.csv", "crop")
files = field_files("FIELDS")
samples = sample(map(open_field, files), areas)
classifier = fit("logistic", samples)
print(cross_validate("logistic", samples).markdown())
codes, confidence = class_map(classifier, read_field(files[0]).values)  # numbers of samples.classes
write_maps(Path("MAPS/one"), open_field(files[0]), classifier, samples.classes)  # a field of any size
"""

from __future__ import annotations

import colorsys
import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from rasterio.features import shapes
from rasterio.transform import Affine
from rasterio.warp import transform_geom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from aef.atomic import writing
from aef.data.chips import Chip, Label
from aef.evaluation.labels import field_units
from aef.evaluation.tables import markdown_table
from aef.figure_file import new_figure, save_png
from aef.mapping.field_choice import choose_fields
from aef.mapping.field_windows import Thinned, windows
from aef.mapping.files import origin_tags, read_tags, writing_map
from aef.mapping.labels import LabelError, LabelledArea, Samples
from aef.mapping.picture import pca_rgb
from aef.timecode import Period

if TYPE_CHECKING:
    import xarray

Method = Literal["logistic", "knn"]
METHODS: tuple[Method, ...] = get_args(Method)
INVERSE_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of the logistic regression. Components of unit vectors are small, so that the best is often far above 1."""
NEIGHBOURS = 3
"""As the paper's larger kNN probe (section 7.2)."""
FOLDS = 5
ROWS = 65536
"""Pixels classified at once: distances to every sample are held for them."""


@dataclass(frozen=True)
class Accuracy:
    """Predictions of labels whose square of ground no training label lay in.

    Attributes:
        classes: those that were judged.
        confusion: (K, K), labels of a true class (row) called a class (column); each label counts once, by the shares
            of its pixels.
        not_judged: classes that lie in a single square.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    blocks: int
    not_judged: tuple[str, ...]

    @property
    def overall(self) -> float:
        """Share of labels that are called right."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def recall(self) -> np.ndarray:
        """Per class, the share of its labels that are called so (producer's accuracy)."""
        return np.diag(self.confusion) / self.confusion.sum(axis=1)

    @property
    def precision(self) -> np.ndarray:
        """Per class, the share of what is called so that is so (user's accuracy); NaN where nothing is."""
        called = self.confusion.sum(axis=0)
        return np.divide(np.diag(self.confusion), called, out=np.full(len(called), np.nan), where=called > 0)

    @property
    def balanced(self) -> float:
        """Mean recall."""
        return float(self.recall.mean())

    def markdown(self) -> str:
        """Both accuracies in words, then a row per class."""
        head = ["class", "labels", "recall", "precision", *(f"called {name}" for name in self.classes)]
        rows = [
            [name, f"{row.sum():.0f}", f"{recall:.3f}", f"{precision:.3f}", *(f"{count:.1f}" for count in row)]
            for name, row, recall, precision in zip(self.classes, self.confusion, self.recall, self.precision)
        ]
        parts = [
            f"Balanced accuracy {self.balanced:.3f}, overall {self.overall:.3f}, over {self.blocks} squares of ground.",
            markdown_table(head, rows),
        ]
        if self.not_judged:
            parts.append(f"Not judged, as all their labels lie in one square: {', '.join(self.not_judged)}.")
        return "\n\n".join(parts)

    def figures(self) -> dict[str, Any]:
        """Every number, for a JSON file."""
        return {
            "balanced_accuracy": self.balanced,
            "overall_accuracy": self.overall,
            "squares": self.blocks,
            "classes": list(self.classes),
            "confusion": self.confusion.round(3).tolist(),
            "not_judged": list(self.not_judged),
        }


def of_one_period(files: Sequence[Path], period: str | None) -> list[Path]:
    """The fields of one valid period, ``period`` or the only one that there is, and of one model.

    Raises:
        FieldChoiceError: there are none of the period, or their vectors do not compare.
        LabelError: fields of several periods and no choice: a class of one year looks different in the next.
    """
    chosen = choose_fields(files, period=period)
    periods = sorted({read_tags(path)[1].get("period", "unknown") for path in chosen})
    if len(periods) > 1:
        raise LabelError(f"expected fields of one period, or --period, found {', '.join(periods)}")
    return chosen


def labelled_areas(chips: Iterable[Chip], name: str, period: Period | None = None) -> list[LabelledArea]:
    """The fields of a label that chips carry (`aef.evaluation.labels.field_units`), as areas in degrees.

    Args:
        chips: those without the label contribute nothing.
        name: of the label.
        period: a label that holds at no time of it is left out: in another year a field has another crop.

    Raises:
        LabelError: fewer than two classes are left.
    """
    areas = []
    for chip in chips:
        label = chip.labels.get(name)
        if label is None or not _holds_in(label, period):
            continue
        fields = field_units(label).astype(np.int32)
        for code in np.setdiff1d(label.values, label.ignore).tolist():
            parts = defaultdict(list)
            mask = (label.values == code) & (fields > 0)
            for geometry, field in shapes(fields, mask, transform=Affine(*chip.transform[:6])):
                parts[field].append(geometry["coordinates"])
            for outlines in parts.values():
                geometry = {"type": "MultiPolygon", "coordinates": outlines}
                geometry = transform_geom(chip.crs, "EPSG:4326", geometry)
                areas.append(LabelledArea(geometry, label.legend.get(code, str(code))))
    classes = {area.label for area in areas}
    if len(classes) < 2:
        when = f" at any time of {period}" if period else ""
        raise LabelError(f"expected chips with a label {name!r} of two classes or more{when}, found {len(classes)}")
    return areas


def _holds_in(label: Label, period: Period | None) -> bool:
    if period is None or label.valid_start_ms is None or label.valid_end_ms is None:
        return True
    return label.valid_start_ms < period.end_ms and label.valid_end_ms > period.start_ms


def draw(samples: Samples, shots: int, seed: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Those of some rows of the samples (None: of all) that belong to at most ``shots`` labels of each class, at random."""
    rows = np.arange(len(samples.codes)) if rows is None else rows
    order = np.random.default_rng(seed).permutation(len(np.unique(samples.areas)))
    number = order[np.unique(samples.areas, return_inverse=True)[1]]  # of the label of every row
    chosen = [np.unique(number[rows[samples.codes[rows] == code]])[:shots] for code in np.unique(samples.codes[rows])]
    return rows[np.isin(number[rows], np.concatenate(chosen))]


def fit(method: Method, samples: Samples, rows: np.ndarray | None = None) -> Any:
    """A scikit-learn classifier of vectors, fitted to some ``rows`` of the samples (None: to all).

    The logistic regression weighs classes equally; its penalty is the best of `INVERSE_PENALTIES` over squares of
    ground left out, as neighbours of a training pixel would choose far too small a one.

    Raises:
        ValueError: the method is unknown.
    """
    rows = np.arange(len(samples.codes)) if rows is None else rows
    vectors, codes, blocks = samples.vectors[rows], samples.codes[rows], samples.blocks[rows]
    if method == "knn":
        return KNeighborsClassifier(min(NEIGHBOURS, len(codes))).fit(vectors, codes)
    if method != "logistic":
        raise ValueError(f"unknown method {method!r}: expected {', '.join(METHODS)}")
    regression = LogisticRegression(C=100.0, class_weight="balanced", max_iter=2000)
    if _fewest_blocks(codes, blocks) > 1:
        parts = _parts(codes, blocks)

        def judged(inverse_penalty: float) -> float:
            guess = cross_val_predict(regression.set_params(C=inverse_penalty), vectors, codes, cv=parts)
            return balanced_accuracy_score(codes, guess)

        regression.set_params(C=max(INVERSE_PENALTIES, key=judged))
    return regression.fit(vectors, codes)


def cross_validate(method: Method, samples: Samples, shots: int | None = None, seed: int = 0) -> Accuracy:
    """Cross-validation in up to five parts, split by squares of ground; each label counts once.

    With ``shots`` each part is learnt from so many labels of a class (`draw`), and judged on all of its own.

    Raises:
        LabelError: fewer than two classes lie in two squares each.
    """
    blocks_of = {code: np.unique(samples.blocks[samples.codes == code]) for code in np.unique(samples.codes)}
    judged = [code for code, blocks in blocks_of.items() if len(blocks) > 1]
    alone = tuple(samples.classes[code] for code in blocks_of if code not in judged)
    if len(judged) < 2:
        raise LabelError("no accuracy: expected two classes with labels in two squares of ground each")
    rows = np.flatnonzero(np.isin(samples.codes, judged))
    codes, blocks = samples.codes[rows], samples.blocks[rows]
    guess = np.empty(len(rows), np.int64)
    for train, test in _parts(codes, blocks):
        learnt = rows[train] if shots is None else draw(samples, shots, seed, rows[train])
        guess[test] = fit(method, samples, learnt).predict(samples.vectors[rows[test]])
    _, number, pixels = np.unique(samples.areas[rows], return_inverse=True, return_counts=True)
    confusion = np.zeros((len(judged), len(judged)))
    np.add.at(confusion, (np.searchsorted(judged, codes), np.searchsorted(judged, guess)), 1 / pixels[number])
    return Accuracy(tuple(samples.classes[code] for code in judged), confusion, len(np.unique(blocks)), alone)


def _parts(codes: np.ndarray, blocks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows to test, in up to five parts of whole squares; each class lies in two or more.

    Of few squares the library may put all those of a class into one part, so that nothing of it is learnt: then each
    square is a part of its own.
    """
    parts = list(StratifiedGroupKFold(min(FOLDS, _fewest_blocks(codes, blocks))).split(codes, codes, blocks))
    classes = len(np.unique(codes))
    if any(len(np.unique(codes[train])) < classes for train, _ in parts):
        parts = list(LeaveOneGroupOut().split(codes, codes, blocks))
    return parts


def _fewest_blocks(codes: np.ndarray, blocks: np.ndarray) -> int:
    return min(len(np.unique(blocks[codes == code])) for code in np.unique(codes))


def class_map(classifier: Any, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel's class and how sure it is: (D, y, x) → codes (y, x) int16, −1 without a vector; probability (y, x)."""
    table = np.moveaxis(field, 0, -1).reshape(-1, field.shape[0])
    held = np.flatnonzero(np.isfinite(table).all(axis=1))
    codes, confidence = np.full(len(table), -1, np.int16), np.full(len(table), np.nan, np.float32)
    for start in range(0, len(held), ROWS):
        take = held[start : start + ROWS]
        chances = classifier.predict_proba(table[take])
        codes[take] = classifier.classes_[chances.argmax(axis=1)]
        confidence[take] = chances.max(axis=1)
    return codes.reshape(field.shape[1:]), confidence.reshape(field.shape[1:])


# --- what it leaves behind -------------------------------------------------------------------------------------------

_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#7f7f7f")
"""Okabe and Ito's, which are told apart without red or green."""


def colours(count: int) -> list[tuple[int, int, int]]:
    """A colour (red, green, blue; 0 to 255) per class."""
    chosen = [tuple(int(code[at : at + 2], 16) for at in (1, 3, 5)) for code in _COLOURS[:count]]
    for number in range(len(chosen), count):
        chosen.append(tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55, 0.85)))
    return [(red, green, blue) for red, green, blue in chosen]


class Panel(NamedTuple):
    """What a picture shows of a field, every n-th pixel of it: vectors (D, y, x) and codes (y, x), −1 without one."""

    title: str
    vectors: np.ndarray
    codes: np.ndarray


def write_maps(
    stem: Path,
    field: xarray.DataArray,
    classifier: Any,
    classes: Sequence[str],
    *,
    on_window: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, Panel]:
    """The `class_map` of a field, window by window, into files; gives pixels by class, and what a picture shows.

    ``STEM_classes.tif`` has codes from 1 with colours and names (0: no data), ``STEM_confidence.tif`` per cent (255: no
    data). Both appear once they are whole.

    Args:
        field: of `read_field`, or one larger than memory of `open_field`.
        on_window: called after every window.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    names = {f"class_{code}": name for code, name in enumerate(classes, 1)}
    palette = {code: (*colour, 255) for code, colour in enumerate(colours(len(classes)), 1)}
    tags = origin_tags(field)
    pixels = np.zeros(len(classes), np.int64)
    vectors_shown, codes_shown = Thinned(field.shape), Thinned(field.shape[1:], np.int16)
    paths = [stem.with_name(f"{stem.name}_{what}.tif") for what in ("classes", "confidence")]
    with (
        writing_map(
            paths[0], field, bands=["class"], dtype=np.uint8, nodata=0, tags=tags | names, palette=palette
        ) as write_codes,
        writing_map(
            paths[1], field, bands=["confidence, per cent"], dtype=np.uint8, nodata=255, tags=tags
        ) as write_percent,
    ):
        for rows, columns, vectors in windows(field):
            codes, confidence = class_map(classifier, vectors)
            held = np.isfinite(confidence)
            write_codes(rows, columns, codes + 1)
            write_percent(rows, columns, np.where(held, np.round(100 * np.where(held, confidence, 0)), 255))
            pixels += np.bincount(codes[codes >= 0], minlength=len(classes))
            vectors_shown.take(rows, columns, vectors)
            codes_shown.take(rows, columns, codes)
            on_window()
    title = str(field.attrs.get("place") or field.attrs.get("chip", ""))
    return pixels, Panel(title, vectors_shown.values, codes_shown.values)


def write_legend(path: Path, classes: Sequence[str], pixels: np.ndarray, hectares: np.ndarray) -> None:
    """Code, name, colour and mapped area of every class as a table; codes as in the maps, from 1."""
    with writing(path, "w") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("code", "class", "colour", "pixels", "hectares"))
        for code, (name, colour, count, area) in enumerate(zip(classes, colours(len(classes)), pixels, hectares), 1):
            table.writerow((code, name, "#{:02x}{:02x}{:02x}".format(*colour), int(count), f"{area:.2f}"))


def write_picture(path: Path, panels: Sequence[Panel], classes: Sequence[str]) -> None:
    """A picture: embeddings of some places in false colours, and their classes below.

    Raises:
        ValueError: none of these places has a vector.
    """
    from matplotlib.patches import Patch

    palette = np.array([(255, 255, 255), *colours(len(classes))]) / 255
    figure = new_figure(2.6 * len(panels) + 1.6, 5.6)
    axes = figure.subplots(2, len(panels), squeeze=False)
    for column, (panel, colour) in enumerate(zip(panels, pca_rgb([panel.vectors for panel in panels]))):
        axes[0, column].imshow(colour, interpolation="nearest")
        axes[0, column].set_title(panel.title, fontsize=8)
        axes[1, column].imshow(palette[panel.codes + 1], interpolation="nearest")
        for axis in axes[:, column]:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.legend(
        handles=[Patch(color=tuple(shade), label=name) for name, shade in zip(classes, palette[1:])],
        loc="outside right center",
        fontsize=8,
    )
    save_png(path, figure)
