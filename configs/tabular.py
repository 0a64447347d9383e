"""Tables: seven classifiers of scikit-learn into one small network that can be exported.

    python -m mtkd_jax.leaderboard --config=tabular --workdir=runs/tabular
    python -m mtkd_jax.main --config=configs/tabular.py:wine --workdir=runs/wine

Data      scikit-learn's own tables: breast cancer (569 rows of 30 columns), wine (178 of 13) and digits
          (1 797 of 64, as images). Every column is normalised by its training rows, within the network.
Compares  what an mlp of 8 hidden units learns from the probabilities of a forest, boosted trees, nearest
          neighbours, a linear and a quadratic model, Bayes' rule and an mlp of scikit-learn, fitted to the
          training rows: five modes over ten seeds, at four points each (two weights of the hard labels by two
          temperatures, chosen on validation), with the baseline, the capacity control and output_avg taught
          by what is said of other rows.
Variants  "breast_cancer", "wine" and "digits", and the first and the last of these with 50 and 100 labels,
          where students also learn from all other training rows, whose labels are hidden, make the table; ""
          is breast_cancer. "iris" by name alone: its 30 test rows tell nothing apart. "smoke" is wine in
          small.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

VARIANTS = (  # the data sets of the table, in this order
    "breast_cancer",
    "wine",
    "digits",
    "breast_cancer_50",
    "digits_100",
)

CLASSIFIERS = (
    "scikit_learn(name='RandomForestClassifier', arguments={'n_estimators': 300}, scaled=False)",
    "scikit_learn(name='HistGradientBoostingClassifier', scaled=False)",
    "scikit_learn:KNeighborsClassifier",
    "scikit_learn:LogisticRegression",
    "scikit_learn:GaussianNB",
    "scikit_learn(name='MLPClassifier', arguments={'max_iter': 1000})",
)
QUADRATIC = "scikit_learn(name='QuadraticDiscriminantAnalysis', arguments={'reg_param': 0.1})"


def get_config(variant: str = "") -> ConfigDict:
    """A table, see above; "" is breast_cancer."""
    config = configuration.default()
    config.data.source = "breast_cancer"

    config.teachers.classifiers = (*CLASSIFIERS, QUADRATIC)

    config.train.batch_size = 16
    config.train.epochs = 100
    config.train.eval_every = 5
    config.train.learning_rate = 3e-3
    config.train.schedule = "cosine"

    config.students.model = "mlp(hidden=(8,))"
    config.students.modes = ("output_avg", "logit_avg", "vote", "mimic_all", "weights.ca_mkd")
    config.students.controls = ("shuffled_teacher",)
    config.students.controlled = ("output_avg",)
    config.students.alphas = (0.0, 0.5)
    config.students.temperatures = (1.0, 4.0)
    config.students.num_seeds = 10
    sets = {name: _set(name) for name in ("breast_cancer", "wine", "iris")}
    few = dict(breast_cancer_50=_few("breast_cancer", 50), digits_100=_few("digits", 100))
    return configuration.variant(config, variant, **sets, **few, digits=_digits, smoke=_smoke)


def _set(name: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        config.data.source = name

    return change


def _digits(config: ConfigDict) -> None:
    config.data.source = "digits"
    config.students.model = "mlp(hidden=(16,))"
    config.train.epochs = 30


def _few(name: str, num_train: int) -> Callable[[ConfigDict], None]:
    """So many labels, too few for a quadratic model, and all other training rows without."""

    def change(config: ConfigDict) -> None:
        (_digits if name == "digits" else _set(name))(config)
        config.teachers.classifiers = CLASSIFIERS
        config.data.num_train = num_train
        config.students.transfer = ("unlabelled",)

    return change


def _smoke(config: ConfigDict) -> None:
    config.data.source = "wine"
    config.teachers.classifiers = ("scikit_learn:GaussianNB", "scikit_learn:KNeighborsClassifier")
    config.train.epochs = 4
    config.train.eval_every = 2
    config.students.modes = ("output_avg", "vote")
    config.students.num_seeds = 2
