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

from . import _data, _diagnostics, _distributed, _inference, _initialising, _validation
from ._inference import Blocks
from ._training import Options, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from typing_extensions import Self

    from ._data import Source
    from ._networks import Networks

__all__ = ["RobustVaDE", "VaDE"]


def _described(networks: Networks, x: Tensor) -> tuple[Tensor, ...]:
    """Latent means, scores and, where there is one, places on the map."""
    mu, lv = networks.encode(x)
    scores = networks.scores(mu, lv)[0]
    return (mu, scores) if networks.t_encoder is None else (mu, scores, networks.embed(mu))


class RobustVaDE(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """Deep clustering by a variational autoencoder with a Gaussian mixture, made discriminative and local."""

    labels_: np.ndarray[Any, Any]
    module_: Networks
    _training: Training
    _preparation: _data.Preparation
    _reservoir: _initialising.Reservoir | None
    _fitted_assign: str
    _n_rows: int | None

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_latent: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        encoder: str | nn.Module = "mlp",
        reconstruction: str = "auto",
        mutual_information: float = 1.0,
        locality: float = 10.0,
        perplexity: float | str = "auto",
        exaggeration: float = 4.0,
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
        denoising: float = 1.0,
        start: str = "map",
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
        self.exaggeration = exaggeration
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
        self.denoising = denoising
        self.start = start
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
            settings = self._settings()
            with self._threads():
                with _distributed.agreement("the start of fit"):
                    source = self._start(X, settings, resume)
                self._join()
                self._training.run(source, settings["callbacks"], estimator=self, verbose=bool(self.verbose))
                self._finish(source, source)
        return self

    def partial_fit(self, X: Any, y: object = None) -> Self:
        """Trains for one epoch on the rows of X, the first time after pretraining on them; y is ignored."""
        with self._unchanged_if_it_fails():
            settings = self._settings()
            with self._threads():
                with _distributed.agreement("the start of partial_fit"):
                    source = self._go_on(X, settings) if hasattr(self, "module_") else self._start(X, settings)
                self._join()
                self._training.prepare(source, settings["callbacks"], estimator=self, verbose=bool(self.verbose))
                if self._reservoir is None:
                    self._reservoir = _initialising.Reservoir(source.shape, source.device, self._training.seed())
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
        return self._answer(X, lambda blocks: blocks.labels(self._assign(assign)))

    def predict_proba(self, X: Any, *, assign: str | None = None) -> Any:
        """Membership of each row in each cluster."""
        return self._answer(X, lambda blocks: blocks.memberships(self._assign(assign)))

    def transform(self, X: Any, *, space: str | None = None) -> Any:
        """The rows in the map or in the latent space."""
        return self._answer(X, lambda blocks: blocks.latent() if self._space(space) == "latent" else blocks.embedding())

    def score_samples(self, X: Any, *, n_samples: int = 16) -> Any:
        """A lower bound of each row's log-likelihood in nats."""
        _validation.count("n_samples", n_samples)
        return self._answer(X, lambda blocks: blocks.score_samples(n_samples))

    def score(self, X: Any, y: object = None) -> float:
        """The mean of `score_samples`; y is ignored."""
        return float(self.score_samples(X).mean())

    def reconstruct(self, X: Any) -> Any:
        """The rows as they are decoded from the means of their latents."""
        return self._answer(X, lambda blocks: blocks.reconstruct())

    def sample(self, n: int = 1, *, cluster: int | None = None) -> tuple[Any, Any]:
        """New rows and the components that they come from."""
        check_is_fitted(self)
        _validation.count("n", n)
        n_clusters = len(self.module_.logits)
        if cluster is not None:
            _validation.count("cluster", cluster, 0)
            if cluster >= n_clusters:
                raise ValueError(f"cluster must be less than n_clusters={n_clusters}, got {cluster}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with self._threads():
            generator = torch.Generator().manual_seed(seed)
            rows, labels = _inference.sample(self.module_, self._preparation, n, cluster, generator)
        return rows.cpu().numpy(), labels.cpu().numpy()

    def _answer(self, X: Any, work: Callable[[Blocks], Tensor]) -> Any:
        check_is_fitted(self)
        with self._threads():
            source = self._source(X)
            return _data.output(work(Blocks(self.module_, source)), source)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the fitted estimator to a folder, as `model.safetensors` and `config.json`.

        A model that was there is replaced at once, or stays whole if the process is killed. Written are the parameters
        but those of a machine or a call (`device`, `n_jobs`, `verbose`, `callbacks`), the networks, `labels_`,
        `history_` and `diagnostics_`. After `partial_fit` also what that goes on from: Adam's moments and the reservoir
        of at most 10,000 of the rows that it has seen, so such a file holds data. `partial_fit` of a model that `fit`
        made and that was loaded starts with moments of zero. A `random_state` that is no integer is written as None.

        Args:
            folder: Where to; it is made if it is not there.

        Raises:
            NotFittedError: The estimator is not fitted.
            TypeError: A parameter of a subclass, or the state of an encoder, is nothing that JSON or safetensors holds.
            OSError: The folder cannot be written to.

        Example:
            >>> import tempfile
            >>> from sklearn.datasets import load_digits
            >>> from vade_robust import VaDE
            >>> X = load_digits().data / 16
            >>> estimator = VaDE(10, hidden=(32,), pretrain_epochs=1, epochs=1, random_state=0).fit(X)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     estimator.save(folder)
            ...     (VaDE.load(folder).predict(X) == estimator.labels_).all()
            np.True_
        """
        from . import _saving

        _saving.save(self, folder)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        encoder: nn.Module | None = None,
    ) -> Self:
        """The estimator that `save` wrote to a folder; it predicts the same bits. Files are taken as hostile.

        Args:
            folder: Where `save` wrote to.
            device: Where to work, cuda if present for None; becomes the parameter `device`.
            encoder: For models that were made with a module as their encoder: one of the same kind, which is copied
                and given the weights of the file.

        Returns:
            An estimator of this class, fitted as the one that was saved.

        Raises:
            OSError: A file is not there or cannot be read.
            ValueError: A file is cut short, foreign, changed, or of another class or a later version, and the message
                names it and the key; `device` is not of this machine; `encoder` is missing or superfluous.
            TypeError: `encoder` is no module.

        Example:
            See `save`.
        """
        from . import _saving

        return _saving.load(cls, folder, device=device, encoder=encoder)

    def _settings(self) -> dict[str, Any]:
        """The parameters in force, checked."""
        with _distributed.agreement("the check of parameters"):
            return _validation.parameters(self)

    def _go_on(self, X: Any, settings: dict[str, Any]) -> Source:
        """A copy of the training, for the rows of X."""
        self._training = copy.deepcopy(self._training)
        self.module_ = self._training.networks
        self._reservoir = copy.deepcopy(self._reservoir)
        source = self._source(X, read=True)
        _validation.perplexity(settings, source.batch_size or settings["batch_size"])
        self._n_rows = source.n_rows
        return source

    def _join(self) -> None:
        """In a process group: all start from what the first process has."""
        training, networks = self._training, self.module_
        own = [(name, tuple(value.shape)) for name, value in networks.state_dict().items()]
        same = (type(self).__name__, training.options, training.phase, training.epoch, own)
        _distributed.check_same(repr(same), "parameters and features")
        _distributed.check_same(repr(self._n_rows), "number of rows")
        _distributed.broadcast([*networks.parameters(), *networks.buffers()])
        state = training.generator.get_state()
        _distributed.broadcast([state])
        training.generator.set_state(state)

    def _source(self, X: Any, *, read: bool = False) -> Source:
        """The rows of X as those that were fitted."""
        source = _data.source(self, X, device=self.module_.logits.device, shape=self.module_.shape)
        source.use(self._preparation, read=read)
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

    def _start(self, X: Any, settings: dict[str, Any], resume: str | os.PathLike[str] | None = None) -> Source:
        """All checks, then new networks and a new training, or that of a checkpoint."""
        device = _validation.device(self.device)
        source = _data.source(self, X, device=device)
        preparation = _data.prepare(source, settings["reconstruction"])
        _validation.fit(settings, source)
        preset = settings["preset"]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        own = settings["encoder"] if isinstance(settings["encoder"], nn.Module) else None
        fields = {name: value for name, value in settings.items() if name in Options.__dataclass_fields__}
        options = Options(
            **fields | {"encoder": "module" if own is not None else settings["encoder"]},
            kind=preparation.kind,
            clamp=preset is None,
            prepared_head=preset is None,
            whitening=preset is None,
            floor=preset == "lpvdn",
            exact_perplexity=preset == "lpvdn",
        )
        networks = options.networks(source.shape, seed, own)
        for name, value in preparation.tensors().items():
            networks.get_buffer(name).copy_(value)
        networks.to(device)
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        self.n_features_in_ = source.n_features
        if source.feature_names is not None:
            self.feature_names_in_ = source.feature_names
        self._preparation = preparation
        self._fitted_assign = settings["assign"]
        self._reservoir = None
        self._training = Training(networks, options, seed)
        self._n_rows = source.n_rows
        self.module_ = networks
        if resume is not None:
            from . import _saving

            _saving.resume(self, resume, source, settings)
        for callback in settings["callbacks"]:
            if hasattr(callback, "begin"):
                callback.begin(resume)
        return source

    def _finish(self, source: Source, sample: Source | _initialising.Reservoir) -> None:
        """The centres and all that is said of the fit, from rows that stand for all, and the labels of the source."""
        training, networks = self._training, self.module_
        n_clusters = training.options.n_clusters
        _distributed.broadcast([*networks.parameters(), *networks.buffers()])
        mu, a, *rest = Blocks(networks, sample).map(_described)
        _distributed.broadcast([mu, a, *rest])
        mixture_labels = a.argmax(1).int()
        embedding_labels = None
        if rest:
            seed = training.seed()
            with _distributed.agreement("the fit of the centres"):
                if _distributed.world()[0] == 0:
                    networks.assign_centers.copy_(_initialising.centers(rest[0], n_clusters, seed))
            _distributed.broadcast([networks.assign_centers])
            (embedding_labels,) = _inference.apply(networks, rest[0], _inference.nearest)
        if not source.ordered:
            labels = None
        elif sample is not source:
            labels = Blocks(networks, source).labels(self._fitted_assign)
        else:
            labels = embedding_labels if self._fitted_assign == "embedding" else mixture_labels
        self.__dict__.pop("labels_", None)  # of the rows of an earlier call
        if labels is not None:
            _distributed.broadcast([labels])
            self.labels_ = labels.cpu().numpy()
        log_weights = self._set_parameters()
        self.n_iter_ = training.epoch
        self.history_ = training.history
        self.diagnostics_ = _diagnostics.diagnostics(
            mu, a, log_weights.exp(), mixture_labels, embedding_labels, training.nonfinite_steps
        )
        if _distributed.world()[0] == 0:
            _diagnostics.warn_of_collapse(self.diagnostics_["collapse"], n_clusters)

    def _set_parameters(self) -> Tensor:
        """The mixture and the centres as attributes; returns log pi."""
        with torch.no_grad():
            log_weights, means, log_variances = (x.detach() for x in self.module_.mixture())
        self.weights_ = log_weights.exp().cpu().numpy()
        self.means_ = means.cpu().numpy().copy()
        self.covariances_ = log_variances.exp().cpu().numpy()
        self.cluster_centers_ = self.means_.copy()
        if self._fitted_assign == "embedding":
            self.cluster_centers_ = self.module_.assign_centers.cpu().numpy().copy()
        return log_weights

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
        denoising: float = 1.0,
        start: str = "map",
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
        self.denoising = denoising
        self.start = start
