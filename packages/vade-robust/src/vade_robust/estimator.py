"""The estimators: what scikit-learn's users call. All work is done elsewhere."""

from __future__ import annotations

import copy
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, DensityMixin, TransformerMixin
from sklearn.utils import ClassifierTags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from . import _data, _diagnostics, _initialising, _ops, _standin, _validation
from ._networks import build
from ._training import Options, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from typing_extensions import Self

    from ._data import Source
    from ._networks import Networks

__all__ = ["RobustVaDE", "VaDE"]


class RobustVaDE(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """Deep clustering by a variational autoencoder with a Gaussian mixture, made discriminative and local."""

    labels_: np.ndarray[Any, Any]
    module_: Networks
    _training: Training
    _preparation: _data.Preparation
    _reservoir: _initialising.Reservoir | None
    _fitted_assign: str
    _seed: int

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
        return self.module_.n_latent

    def fit(self, X: Any, y: object = None, *, resume: str | os.PathLike[str] | None = None) -> Self:
        """Trains on the rows of X; y is ignored."""
        with self._unchanged_if_it_fails():
            settings = _validation.parameters(self)
            with self._threads():
                source = self._start(X, settings)
                self._training.run(source, settings["callbacks"], estimator=self, verbose=bool(self.verbose))
                self._finish(source, source)
        return self

    def partial_fit(self, X: Any, y: object = None) -> Self:
        """Trains for one epoch on the rows of X, the first time after pretraining on them; y is ignored."""
        with self._unchanged_if_it_fails():
            settings = _validation.parameters(self)
            with self._threads():
                if hasattr(self, "module_"):
                    self._training = copy.deepcopy(self._training)
                    self.module_ = self._training.networks
                    self._reservoir = copy.deepcopy(self._reservoir)
                    source = self._source(X)
                else:
                    source = self._start(X, settings)
                    self._training.prepare(source, settings["callbacks"], estimator=self, verbose=bool(self.verbose))
                if self._reservoir is None:
                    self._reservoir = _initialising.Reservoir(self._training.seed())
                self._training.one_epoch(source)
                for x in source.in_order():
                    self._reservoir.add(x)
                self._finish(source, self._reservoir)
        return self

    def fit_predict(self, X: Any, y: object = None, **params: Any) -> Any:
        """Trains on X and returns its labels; y is ignored."""
        self.fit(X, **params)
        if isinstance(X, Tensor):
            return torch.from_numpy(self.labels_).to(X.device)
        return self.labels_ if hasattr(self, "labels_") else self.predict(X)

    def predict(self, X: Any, *, assign: str | None = None) -> Any:
        """The cluster of each row."""
        return self._answer(X, lambda source: self._probabilities(source, self._assign(assign)).argmax(1).int())

    def predict_proba(self, X: Any, *, assign: str | None = None) -> Any:
        """Membership of each row in each cluster."""
        return self._answer(X, lambda source: self._probabilities(source, self._assign(assign)))

    def transform(self, X: Any, *, space: str | None = None) -> Any:
        """The rows in the map or in the latent space."""

        def place(source: Any) -> Tensor:
            blocks = _standin.Blocks(self.module_, source)
            where = self._space(space)
            placed: Tensor = blocks.latent() if where == "latent" else blocks.embedding()
            return placed

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

    def _answer(self, X: Any, work: Callable[[Source], Tensor]) -> Any:
        check_is_fitted(self)
        with self._threads(), torch.no_grad():
            source = self._source(X)
            return _data.output(work(source), source)

    def _source(self, X: Any) -> Source:
        """The rows of X as those that were fitted."""
        source = _data.source(self, X, device=self.module_.logits.device, shape=self.module_.shape)
        source.use(self._preparation)
        return source

    def _assign(self, assign: str | None = None) -> str:
        """The assignment that was asked for, or that of the fit."""
        if assign is None:
            return self._fitted_assign
        _validation.option("assign", assign, ("embedding", "mixture"))
        if assign == "embedding" and self.module_.t_encoder is None:
            raise ValueError("assign='embedding' needs the map that locality trains, and this estimator has locality=0")
        return assign

    def _space(self, space: str | None) -> str:
        if space is None:
            return "latent" if self._fitted_assign == "mixture" else "embedding"
        _validation.option("space", space, ("embedding", "latent"))
        if space == "embedding" and self.module_.t_encoder is None:
            raise ValueError("space='embedding' needs the map that locality trains, and this estimator has locality=0")
        return space

    def _probabilities(self, source: Any, assign: str) -> Tensor:
        blocks = _standin.Blocks(self.module_, source)
        if assign == "embedding":
            return self._near(blocks.embedding())
        return self.module_.scores(*blocks.both())[0].softmax(1)

    def _near(self, embedded: Tensor) -> Tensor:
        near: Tensor = 1 / (1 + _ops.squared_distances(embedded, self.module_.assign_centers))
        return near / near.sum(1, keepdim=True)

    def _start(self, X: Any, settings: dict[str, Any]) -> Source:
        """All checks, then new networks and a new training."""
        device = _validation.device(self.device)
        source = _data.source(self, X, device=device)
        preparation = _data.prepare(source, settings["reconstruction"])
        _validation.fit(settings, source)
        preset = settings["preset"]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        networks = build(
            seed,
            source.shape,
            n_clusters=settings["n_clusters"],
            n_latent=settings["n_latent"],
            hidden=settings["hidden"],
            encoder=settings["encoder"],
            mutual_information=settings["mutual_information"] > 0,
            locality=settings["locality"] > 0,
            clamp=preset is None,
        )
        for name, value in preparation.tensors().items():
            networks.get_buffer(name).copy_(value)
        networks.to(device)
        options = Options(
            kind=preparation.kind,
            prepared_head=preset is None,
            floor=preset == "lpvdn",
            exact_perplexity=preset == "lpvdn",
            **{name: value for name, value in settings.items() if name in Options.__dataclass_fields__},
        )
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        self.n_features_in_ = source.n_features
        if source.feature_names is not None:
            self.feature_names_in_ = source.feature_names
        self._preparation = preparation
        self._fitted_assign = settings["assign"]
        self._reservoir = None
        self._training = Training(networks, options, seed)
        self._seed = seed
        self.module_ = networks
        return source

    def _finish(self, source: Source, sample: Source | _initialising.Reservoir) -> None:
        """The centres and all that is said of the fit, from rows that stand for all, and the labels of the source."""
        training, networks = self._training, self.module_
        networks.eval()
        blocks = _standin.Blocks(networks, sample)
        with torch.no_grad():
            mu, lv = blocks.both()
            a = networks.scores(mu, lv)[0]
            mixture_labels = a.softmax(1).argmax(1).int()
            embedding_labels = None
            if networks.t_encoder is not None:
                embedded = blocks.embedding()
                n_clusters = training.options.n_clusters
                networks.assign_centers.copy_(_initialising.centers(embedded, n_clusters, training.seed()))
                embedding_labels = self._near(embedded).argmax(1).int()
            log_weights, means, log_variances = networks.mixture()
            if not source.ordered:
                labels = None
            elif sample is not source:
                labels = self._probabilities(source, self._fitted_assign).argmax(1).int()
            else:
                labels = embedding_labels if self._fitted_assign == "embedding" else mixture_labels
        if labels is not None:
            self.labels_ = labels.cpu().numpy()
        self.weights_ = log_weights.exp().cpu().numpy()
        self.means_ = means.detach().cpu().numpy()
        self.covariances_ = log_variances.detach().exp().cpu().numpy()
        self.cluster_centers_ = self.means_.copy()
        if self._fitted_assign == "embedding":
            self.cluster_centers_ = networks.assign_centers.cpu().numpy().copy()
        self.n_iter_ = training.epoch
        self.history_ = training.history
        self.diagnostics_ = _diagnostics.diagnostics(
            mu, a, log_weights.exp(), mixture_labels, embedding_labels, training.nonfinite_steps
        )
        _diagnostics.warn_of_collapse(self.diagnostics_["collapse"], training.options.n_clusters)

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
        torch.set_num_threads(self.n_jobs if self.n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + self.n_jobs))
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
