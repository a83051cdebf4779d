"""Few-shot probes on frozen features, split by independent units, with intervals (paper section 7.2).

Neighbouring pixels of one field are one observation, not many: a split by pixel lets coordinates alone win. Units are
fields, blocks or places; a unit lies wholly in the training or in the test part of a trial.

=========  =========================================================================================================
probe      what it is
=========  =========================================================================================================
linear     one-vs-rest least squares on ±1 targets with intercept, λ = 0, least norm where under-determined (paper)
ridge      the same with λ chosen on training units left out; λ = 0 breaks where shots ≈ dimensions
kNN-1, -3  nearest neighbours in L2 (paper)
=========  =========================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

LAMBDAS = tuple(10.0**k for k in range(-4, 4))
"""Ridge penalties tried, relative to the features' mean sum of squares over the training pixels, centred."""
FOLDS = 5
TRAIN_SHARE = 0.7
"""Of each class's units; the rest are tested."""
SPLIT_DRAWS = 20
"""Splits that are drawn at most until every class can be learnt and tested."""
KINDS = ("linear", "ridge", "kNN-1", "kNN-3")
MAX_SHOTS = 300
"""Training pixels per class where all are asked for (the paper's largest trial)."""


class ProbeError(ValueError):
    """Labels on which a probe cannot be judged; one line."""


class Table(Protocol):
    """Features of N pixels: an array (N, D), or what gives some of its rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Labelled:
    """Labelled pixels: ``labels`` (N,) class codes, ``units`` (N,) which field, block or place a pixel belongs to."""

    labels: np.ndarray
    units: np.ndarray

    def __post_init__(self) -> None:
        if self.labels.shape != self.units.shape or self.labels.ndim != 1:
            raise ProbeError(f"expected one label and one unit a pixel, found {self.labels.shape}, {self.units.shape}")
        if len(np.unique(self.labels)) < 2:
            raise ProbeError("expected at least two classes")

    @property
    def classes(self) -> np.ndarray:
        """The class codes, sorted."""
        return np.unique(self.labels)

    def units_of(self, code: int) -> np.ndarray:
        """The units that hold a pixel of a class, sorted."""
        return np.unique(self.units[self.labels == code])


@dataclass
class Scores:
    """Test results of one feature set and probe: per trial the balanced accuracy; per (unit, class) hits and tests."""

    trials: list[float]
    hits: dict[tuple[int, int], int]
    tests: dict[tuple[int, int], int]

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the trials."""
        return float(np.mean(self.trials))


def split_units(labelled: Labelled, rng: np.random.Generator) -> np.ndarray:
    """`TRAIN_SHARE` of each class's units for training, at least one on either side: (N,) bool.

    Where units hold several classes, the units of one may all fall to one side with those of others; it is drawn again
    then. Few units may allow no better split.

    Raises:
        ProbeError: a class lies in one unit.
    """
    for _ in range(SPLIT_DRAWS):
        train = _draw_split(labelled, rng)
        if all(len(np.unique(labelled.labels[side])) == len(labelled.classes) for side in (train, ~train)):
            break
    return train


def _draw_split(labelled: Labelled, rng: np.random.Generator) -> np.ndarray:
    train: set[int] = set()
    test: set[int] = set()
    # Rare classes choose first, so that a unit shared with a common class cannot starve them.
    for code in sorted(labelled.classes, key=lambda c: len(labelled.units_of(c))):
        units = labelled.units_of(code)
        if len(units) < 2:
            raise ProbeError(f"class {code} lies in {len(units)} unit: at least two are needed to train and to test")
        free = rng.permutation([u for u in units if u not in train and u not in test])
        wanted = min(max(1, round(TRAIN_SHARE * len(units))), len(units) - 1) - len(train & set(units.tolist()))
        train.update(free[: max(wanted, 0)].tolist())
        test.update(free[max(wanted, 0) :].tolist())
    return np.isin(labelled.units, sorted(train))


def draw_shots(labelled: Labelled, candidates: np.ndarray, shots: int | None, rng: np.random.Generator) -> np.ndarray:
    """Indices of up to `shots` training pixels per class (None: up to 300), spread over units before pixels repeat one."""
    chosen = []
    for code in labelled.classes:
        index = rng.permutation(np.flatnonzero(candidates & (labelled.labels == code)))
        # The n-th pixel of every unit comes before the (n + 1)-th of any.
        order = np.argsort(labelled.units[index], kind="stable")
        _, first, counts = np.unique(labelled.units[index][order], return_index=True, return_counts=True)
        turn = np.empty(len(index), np.int64)
        turn[order] = np.arange(len(index)) - np.repeat(first, counts)
        chosen.append(index[np.argsort(turn, kind="stable")][: shots or MAX_SHOTS])
    return np.concatenate(chosen)


def predict(
    kind: str, features: np.ndarray, labels: np.ndarray, test: np.ndarray, units: np.ndarray | None = None
) -> np.ndarray:
    """Fit one probe and classify.

    Args:
        features, labels: (n, D), (n,) training pixels.
        test: (m, D).
        units: (n,) what the training pixels belong to, for the choice of λ; None: each is one of its own.

    Returns:
        (m,) class codes.

    Raises:
        ProbeError: the probe is unknown.
    """
    if kind in ("kNN-1", "kNN-3"):
        neighbours = min(int(kind[-1]), len(labels))
        return KNeighborsClassifier(neighbours).fit(features, labels).predict(test)
    if kind not in ("ridge", "linear"):
        raise ProbeError(f"unknown probe {kind!r}: expected {', '.join(KINDS)}")
    classes = np.unique(labels)
    targets = np.where(labels[:, None] == classes, 1.0, -1.0)
    if kind == "linear":
        return classes[_least_norm(features, targets, test).argmax(axis=1)]
    penalty = choose_penalty(features, targets, np.arange(len(labels)) if units is None else units)
    fit = _Ridge(features, targets)
    return classes[fit(fit.rotate(test), penalty).argmax(axis=1)]


class _Ridge:
    """Centred ridge regression for any penalty above 0.

    One symmetric eigendecomposition serves them all, of the features' Gram matrix or of the pixels', whichever is
    smaller. It costs less than a singular value decomposition of the features, whose accuracy only λ = 0 needs.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        self.centre, self.level = features.mean(axis=0), targets.mean(axis=0)
        centred, wanted = features - self.centre, targets - self.level
        by_pixel = centred.shape[0] < centred.shape[1]
        gram = centred @ centred.T if by_pixel else centred.T @ centred
        self.eigenvalues, vectors = np.linalg.eigh(gram)
        self.directions = centred.T @ vectors if by_pixel else vectors
        self.rotated = vectors.T @ (wanted if by_pixel else centred.T @ wanted)
        # Relative to the features' variance, so that one grid suits unit vectors and z-scores alike.
        self.scale = np.trace(gram) / features.shape[1]

    def rotate(self, test: np.ndarray) -> np.ndarray:
        """Test pixels (m, D) along the directions, the same for every penalty."""
        return (test - self.centre) @ self.directions

    def __call__(self, rotated: np.ndarray, penalty: float) -> np.ndarray:
        """Predicted targets of rotated test pixels."""
        damped = np.maximum(np.maximum(self.eigenvalues, 0) + penalty * self.scale, 1e-300)
        return rotated @ (self.rotated / damped[:, None]) + self.level


def _least_norm(features: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predicted targets of centred least squares, the solution of least norm where there are several."""
    centre, level = features.mean(axis=0), targets.mean(axis=0)
    weights = np.linalg.lstsq(features - centre, targets - level, rcond=1e-10)[0]
    return (test - centre) @ weights + level


def choose_penalty(features: np.ndarray, targets: np.ndarray, units: np.ndarray) -> float:
    """The one of `LAMBDAS` with the least squared error on units left out, in up to five folds.

    Leaving out single pixels would choose far too small a penalty: their neighbours in the same field give them away.
    """
    _, number = np.unique(units, return_inverse=True)
    count = int(number.max()) + 1
    folds = min(FOLDS, count)
    if folds < 2:
        return LAMBDAS[-1]
    # Dealt out class by class, so that every fold gets some units of each.
    kind = np.zeros(count, np.int64)
    kind[number] = targets.argmax(axis=1)
    turn = np.empty(count, np.int64)
    turn[np.argsort(kind, kind="stable")] = np.arange(count)
    fold = (turn % folds)[number]
    errors = np.zeros(len(LAMBDAS))
    for held in range(folds):
        out = fold == held
        fit = _Ridge(features[~out], targets[~out])
        left_out = fit.rotate(features[out])
        errors += [np.square(fit(left_out, penalty) - targets[out]).sum() for penalty in LAMBDAS]
    return LAMBDAS[int(errors.argmin())]


def probe(
    features: Mapping[str, Table],
    labelled: Labelled,
    *,
    shots: int | None,
    trials: int = 20,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    on_trial: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Scores]]:
    """Judge every feature set on the same splits and shots: name → probe → `Scores`.

    Args:
        features: (N, D) tables, rows as in `labelled`; scaled by the caller where scales differ between columns.
        labelled: classes and units of the N pixels.
        shots: training pixels per class; None: all, up to 300.
        trials: splits, each with its own shots.
        seed: of the splits.
        kinds: probes to fit.
        on_trial: called after each trial.

    Raises:
        ProbeError: a table of another length, a class in one unit, or an unknown probe.
    """
    for name, table in features.items():
        if len(table) != len(labelled.labels):
            raise ProbeError(f"{name}: expected {len(labelled.labels)} rows, found {len(table)}")
    results = {name: {kind: Scores([], {}, {}) for kind in kinds} for name in features}
    for trial in range(trials):
        rng = np.random.default_rng((seed, trial))
        train = split_units(labelled, rng)
        chosen = draw_shots(labelled, train, shots, rng)
        tested = _Tested(labelled, np.flatnonzero(~train))
        for name, table in features.items():
            learnt, asked = (np.asarray(table[rows], np.float64) for rows in (chosen, tested.rows))
            for kind in kinds:
                guess = predict(kind, learnt, labelled.labels[chosen], asked, labelled.units[chosen])
                tested.count(guess, results[name][kind])
        on_trial()
    return results


class _Tested:
    """The test pixels of one trial by unit and class, the same for every feature set and probe."""

    def __init__(self, labelled: Labelled, rows: np.ndarray) -> None:
        self.rows, self.truth = rows, labelled.labels[rows]
        keys, group = np.unique(np.stack([labelled.units[rows], self.truth]), axis=1, return_inverse=True)
        self.keys, self.group = [(unit, code) for unit, code in keys.T.tolist()], group.ravel()
        self.sizes = np.bincount(self.group)

    def count(self, guess: np.ndarray, scores: Scores) -> None:
        """Add the hits of one probe to its scores."""
        correct = self.truth == guess
        scores.trials.append(float(np.mean([correct[self.truth == code].mean() for code in np.unique(self.truth)])))
        hits = np.bincount(self.group, weights=correct)
        for key, hit, size in zip(self.keys, hits, self.sizes):
            scores.hits[key] = scores.hits.get(key, 0) + int(hit)
            scores.tests[key] = scores.tests.get(key, 0) + int(size)


def better(results: Mapping[str, Scores], kinds: Sequence[str] = ("ridge", "kNN-3")) -> tuple[str, Scores]:
    """The better of some probes of one feature set, by balanced accuracy."""
    kind = max(kinds, key=lambda k: results[k].balanced_accuracy)
    return kind, results[kind]


def bootstrap(
    scores: Scores, other: Scores | None = None, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the balanced accuracy, or of its paired difference to `other`, from resampling units within classes.

    A unit's accuracy is over all trials that tested it; a class's is over its units' pixels. That is not quite the mean
    over the trials: of few units of very different size the interval's middle lies beside it.
    """
    codes = sorted({code for _, code in scores.tests})
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for code in codes:
        keys = sorted(key for key in scores.tests if key[1] == code)
        tests = np.array([scores.tests[key] for key in keys])
        hits = np.array([scores.hits[key] for key in keys], np.float64)
        if other is not None:
            hits = hits - np.array([other.hits[key] for key in keys])
        drawn = rng.integers(0, len(keys), (draws, len(keys)))
        total += hits[drawn].sum(axis=1) / tests[drawn].sum(axis=1)
    low, high = np.quantile(total / len(codes), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def effective_rank(vectors: np.ndarray) -> float:
    """exp(entropy of the normalised eigenvalues of the covariance) of vectors (N, D): how many directions are used."""
    eigenvalues = np.clip(np.linalg.eigvalsh(np.cov(np.asarray(vectors, np.float64).T, bias=True)), 0, None)
    share = eigenvalues / max(eigenvalues.sum(), 1e-30)
    return float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-30)))))
