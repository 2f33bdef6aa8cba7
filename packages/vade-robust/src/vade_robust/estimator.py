"""The estimators: what scikit-learn's users call. All work is done elsewhere."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, DensityMixin, TransformerMixin
from sklearn.utils import ClassifierTags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from . import _diagnostics, _initialising, _ops, _standin
from ._networks import build
from ._training import Options, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from typing_extensions import Self

    from ._networks import Networks

__all__ = ["RobustVaDE", "VaDE"]

PRESETS: dict[str, dict[str, Any]] = {
    "lpvdn": {
        "reconstruction": "bernoulli",
        "posterior": "sampled",
        "mutual_information": 1.0,
        "locality": 1e-4,
        "perplexity": "auto",
        "assign": "embedding",
        "adversarial": 0.0,
        "warmup": 0.0,
    },
    "vade": {
        "posterior": "sampled",
        "mutual_information": 0.0,
        "locality": 0.0,
        "assign": "mixture",
        "adversarial": 0.0,
        "warmup": 0.0,
    },
}
"""What a preset sets; besides, both leave the log-variance head untouched and log variances unclamped, and "lpvdn" adds
the floor of 1e-10 and takes a perplexity of exactly a hundredth of the batch."""


class RobustVaDE(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """Deep clustering by a variational autoencoder with a Gaussian mixture, made discriminative and local."""

    labels_: np.ndarray[Any, Any]
    module_: Networks

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_latent: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        encoder: str | nn.Module = "mlp",
        reconstruction: str = "auto",
        mutual_information: float = 1.0,
        locality: float = 1e-4,
        perplexity: float | str = "auto",
        posterior: str = "exact",
        assign: str = "embedding",
        adversarial: float = 0.0,
        pretrain_epochs: int = 50,
        epochs: int = 300,
        batch_size: int = 800,
        lr: float = 2e-3,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        verbose: bool = False,
        callbacks: Sequence[Any] = (),
        warmup: float = 1.0,
        preset: str | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_latent = n_latent
        self.hidden = hidden
        self.encoder = encoder
        self.reconstruction = reconstruction
        self.mutual_information = mutual_information
        self.locality = locality
        self.perplexity = perplexity
        self.posterior = posterior
        self.assign = assign
        self.adversarial = adversarial
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.callbacks = callbacks
        self.warmup = warmup
        self.preset = preset

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.three_d_array = True
        tags.classifier_tags = ClassifierTags(
            multi_class=True
        )  # asked of whatever has predict_proba and takes sparse rows
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.module_.n_latent)

    def fit(self, X: Any, y: object = None, *, resume: str | os.PathLike[str] | None = None) -> Self:
        """Trains on the rows of X; y is ignored."""
        with self._unchanged_if_it_fails(), self._threads():
            settings = self._settings()
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            source, shift, scale = _standin.source(
                self, X, self._device(), reset=True, reconstruction=settings["reconstruction"]
            )
            self._start(source, shift, scale, settings, seed)
            self._training.run(source, self.callbacks, estimator=self, verbose=self.verbose)
            self._finish(source)
        return self

    def fit_predict(self, X: Any, y: object = None, **params: Any) -> Any:
        """Trains on X and returns its labels; y is ignored."""
        self.fit(X, **params)
        if isinstance(X, Tensor):
            return torch.from_numpy(self.labels_).to(X.device)
        return self.labels_ if hasattr(self, "labels_") else self.predict(X)

    def predict(self, X: Any, *, assign: str | None = None) -> Any:
        """The cluster of each row."""
        return self._answer(X, lambda source: self._probabilities(source, assign).argmax(1).int())

    def predict_proba(self, X: Any, *, assign: str | None = None) -> Any:
        """Membership of each row in each cluster."""
        return self._answer(X, lambda source: self._probabilities(source, assign))

    def transform(self, X: Any, *, space: str | None = None) -> Any:
        """The rows in the map or in the latent space."""
        check_is_fitted(self)
        space = space or ("latent" if self._assign() == "mixture" else "embedding")

        def place(source: Any) -> Tensor:
            blocks = _standin.Blocks(self.module_, source)
            return blocks.latent() if space == "latent" else blocks.embedding()

        return self._answer(X, place)

    def score_samples(self, X: Any, *, n_samples: int = 16) -> Any:
        """A lower bound of each row's log-likelihood in nats."""
        return self._answer(
            X,
            lambda source: _standin.score_samples(
                self.module_, source, self._training.options.kind, n_samples, self._seed
            ),
        )

    def score(self, X: Any, y: object = None) -> float:
        """The mean of `score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    def _answer(self, X: Any, work: Callable[[Any], Tensor]) -> Any:
        check_is_fitted(self)
        with self._threads(), torch.no_grad():
            source, _, _ = _standin.source(self, X, self.module_.logits.device, reset=False, reconstruction="")
            result = work(source)
        return result.cpu().numpy() if source.as_tensor is None else result.to(source.as_tensor)

    def _probabilities(self, source: Any, assign: str | None) -> Tensor:
        assign = assign or self._assign()
        blocks = _standin.Blocks(self.module_, source)
        if assign == "embedding":
            return self._near(blocks.embedding())
        return self.module_.scores(*blocks.both())[0].softmax(1)

    def _near(self, embedded: Tensor) -> Tensor:
        near = 1 / (1 + _ops.squared_distances(embedded, self.module_.assign_centers))
        return near / near.sum(1, keepdim=True)  # type: ignore[no-any-return]

    def _settings(self) -> dict[str, Any]:
        """The parameters that count, those of the preset among them."""
        names = (
            "n_clusters",
            "n_latent",
            "hidden",
            "encoder",
            "reconstruction",
            "mutual_information",
            "locality",
            "perplexity",
            "posterior",
            "assign",
            "adversarial",
            "pretrain_epochs",
            "epochs",
            "batch_size",
            "lr",
            "warmup",
            "preset",
        )
        settings = {name: getattr(self, name) for name in names}
        if settings["preset"] is not None:
            settings |= PRESETS[settings["preset"]]
        return settings

    def _assign(self) -> str:
        return str(self._settings()["assign"])

    def _start(self, source: Any, shift: Tensor, scale: Tensor, settings: dict[str, Any], seed: int) -> None:
        preset = settings["preset"]
        networks = build(
            seed,
            source.shape,
            n_clusters=settings["n_clusters"],
            n_latent=settings["n_latent"],
            hidden=tuple(settings["hidden"]),
            encoder=settings["encoder"],
            mutual_information=settings["mutual_information"] > 0,
            locality=settings["locality"] > 0,
            clamp=preset is None,
        )
        networks.shift.copy_(shift)
        networks.scale.copy_(scale)
        fields = Options.__dataclass_fields__
        options = Options(
            kind=source.kind,
            prepared_head=preset is None,
            floor=preset == "lpvdn",
            exact_perplexity=preset == "lpvdn",
            **{name: value for name, value in settings.items() if name in fields},
        )
        self._seed = seed
        self.module_ = networks.to(self._device())
        self._training = Training(networks, options, seed)

    def _finish(self, source: Any) -> None:
        training, networks = self._training, self._training.networks
        networks.eval()
        blocks = _standin.Blocks(networks, source)
        with torch.no_grad():
            mu, lv = blocks.both()
            a = networks.scores(mu, lv)[0]
            labels = {"mixture": a.softmax(1).argmax(1).int()}
            if networks.t_encoder is not None:
                embedded = blocks.embedding()
                networks.assign_centers.copy_(
                    _initialising.centers(embedded, training.options.n_clusters, training.seed())
                )
                labels["embedding"] = self._near(embedded).argmax(1).int()
            log_weights, means, log_variances = networks.mixture()
        self.labels_ = labels[self._assign()].cpu().numpy()
        self.weights_ = log_weights.exp().cpu().numpy()
        self.means_ = means.detach().cpu().numpy()
        self.covariances_ = log_variances.exp().cpu().numpy()
        self.cluster_centers_ = (
            networks.assign_centers.cpu().numpy() if self._assign() == "embedding" else self.means_.copy()
        )
        self.n_iter_ = training.epoch
        self.history_ = training.history
        self.diagnostics_ = _diagnostics.diagnostics(
            mu, a, log_weights.exp(), labels["mixture"], labels.get("embedding"), training.nonfinite_steps
        )
        _diagnostics.warn_of_collapse(self.diagnostics_["collapse"], training.options.n_clusters)

    def _device(self) -> torch.device:
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @contextmanager
    def _unchanged_if_it_fails(self) -> Iterator[None]:
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    @contextmanager
    def _threads(self) -> Iterator[None]:
        if self.n_jobs is None:
            yield
            return
        before = torch.get_num_threads()
        wanted = self.n_jobs if self.n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + self.n_jobs)
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class VaDE(RobustVaDE):
    """Variational deep embedding (Jiang et al., 2017) with the exact posterior and both stabilisers."""

    mutual_information = 0.0
    locality = 0.0
    perplexity = "auto"
    adversarial = 0.0
    preset = None

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_latent: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        encoder: str | nn.Module = "mlp",
        reconstruction: str = "auto",
        posterior: str = "exact",
        assign: str = "mixture",
        pretrain_epochs: int = 50,
        epochs: int = 300,
        batch_size: int = 800,
        lr: float = 2e-3,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        verbose: bool = False,
        callbacks: Sequence[Any] = (),
        warmup: float = 1.0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_latent = n_latent
        self.hidden = hidden
        self.encoder = encoder
        self.reconstruction = reconstruction
        self.posterior = posterior
        self.assign = assign
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.callbacks = callbacks
        self.warmup = warmup
