"""A search for LightGBM's parameters within a budget, by what they are worth on labels that came later.

Of the rows that training may see, the last ones validate: neither what bootstrap holds out to judge a candidate by, nor any
label that came after those rows began, says which parameters win. The first trial is what would have been used without a
search. Tree-structured Parzen estimators (Bergstra et al. 2011) by Optuna; with a budget of trials alone the result is the
same every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Evaluate = Callable[[Mapping[str, Any]], float]

SPACE: dict[str, tuple[float, float]] = {
    "num_leaves": (7, 127),
    "min_data_in_leaf": (20, 2_000),
    "learning_rate": (0.02, 0.3),
    "feature_fraction": (0.3, 1.0),
    "lambda_l2": (1e-3, 100.0),
}
"""From where to where each parameter is looked for, on a logarithmic scale; those that the recipe sets are left alone."""


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes
    ----------
    params
        The best of those tried.
    loss, usual
        Theirs on the validating rows, and that of the parameters that would have been used without a search.
    """

    trials: int
    params: Mapping[str, Any]
    loss: float
    usual: float


def search(
    evaluate: Evaluate, usual: Mapping[str, Any], given: Mapping[str, Any], trials: int | None, seconds: float | None
) -> Searched:
    """Try parameters until the budget is spent, at least the usual ones.

    Parameters
    ----------
    evaluate
        Gives the loss of some parameters.
    usual
        What is used without a search.
    given
        What the recipe sets: not looked for.
    trials, seconds
        The budget; one of them at least. A trial that has begun is ended.
    """
    import optuna  # here: using trained trees must not load it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: bounds for name, bounds in SPACE.items() if name not in given}

    def objective(trial: Any) -> float:
        params: dict[str, Any] = {}
        for name, (low, high) in space.items():
            ask = trial.suggest_int if isinstance(low, int) else trial.suggest_float
            params[name] = ask(name, low, high, log=True)
        return evaluate(params)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({name: usual[name] for name in space})
    began = time.monotonic()
    study.optimize(objective, n_trials=1)
    first, left = study.best_value, None if seconds is None else seconds - (time.monotonic() - began)
    if trials != 1 and (left is None or left > 0):
        study.optimize(objective, n_trials=None if trials is None else trials - 1, timeout=left)
    return Searched(len(study.trials), study.best_params, study.best_value, first)
