"""Teachers that are no networks: whatever learns from rows and says probabilities, as scikit-learn does."""

from __future__ import annotations

from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Classifier, UserError


def scikit_learn(
    *,
    name: str = "RandomForestClassifier",
    arguments: dict = {},  # noqa: B006
    scaled: bool = True,
) -> Classifier:
    """A classifier of scikit-learn by the name of its class, such as "RandomForestClassifier".

    `arguments` are those of the class, such as {"n_estimators": 300}; where it draws, its `random_state` is
    the run's seed and its place among the teachers. `scaled` puts a StandardScaler before it, which trees do
    not need and all that measures distances does. Raises UserError for names that scikit-learn has not, for
    arguments that the class has not, and for classes without `predict_proba`.

    Examples:
        >>> scikit_learn(name="KNeighborsClassifier", arguments={"n_neighbors": 3}, scaled=False)
        KNeighborsClassifier(n_neighbors=3)
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import all_estimators

    known = dict(all_estimators(type_filter="classifier"))
    if name not in known:
        raise UserError(f"scikit_learn: there is no classifier {name!r}{hint(name, known)}")
    try:
        found = known[name](**arguments)
    except TypeError as error:
        raise UserError(f"scikit_learn: {name}: {error}") from None
    if not isinstance(found, Classifier):
        given = f" with {arguments}" if arguments else ""
        raise UserError(f"scikit_learn: {name}{given} has no predict_proba: must say probabilities")
    return make_pipeline(StandardScaler(), found) if scaled else found
