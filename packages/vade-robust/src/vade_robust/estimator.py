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
from ._surroundings import undisturbed
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
    """Clusters rows by a variational autoencoder with a Gaussian mixture as its prior, made discriminative and local.

    The loss is L_rec + w_e L_cluster + `mutual_information` (L_MI + L_adv) + `locality` L_local. L_rec is the negative
    log-likelihood of the decoded latent; L_cluster = KL(q(z, c|x) || p(z, c)), with the best q(c|x) = softmax(a) in
    closed form,

    a_c = log pi_c - 0.5 sum_d [log 2 pi + ls_cd + (exp(lv_d) + (mu_d - m_cd)^2) / exp(ls_cd)];

    L_MI is the Jensen-Shannon bound of a discriminator T(z, x); L_local = KL(P || Q) is parametric t-SNE of the latent
    means in the batch, on a map t(mu). New rows are clustered by the nearest KMeans centre on the map, or by the
    mixture. Rows are encoded one independently of the others, so that predictions never change from call to call.

    Args:
        n_clusters: Clusters K (8, as scikit-learn's KMeans).
        n_latent: Dimensions D of the latent space and of the map (10, the papers').
        hidden: Widths of the encoder's layers, mirrored in the decoder (500, 500, 2000, the papers').
        encoder: "mlp"; "conv" for images (N, H, W) or (N, C, H, W) of at least 8 x 8; or a module (b, ...) -> (b, H),
            which is copied and given heads and a perceptron as its decoder.
        reconstruction: "bernoulli" for rows in [0, 1] (bytes are divided by 255), "gaussian" for all others, which are
            centred by column and divided by one scalar; "auto" decides by type and range.
        mutual_information: Weight of L_MI (1.0, LPVDN's); 0 leaves the discriminator out.
        locality: Weight of L_local (10; 1e-4, LPVDN's, hardly reaches the encoder); 0 leaves the map out.
        perplexity: Of t-SNE in a batch of b rows; "auto" is min(max(0.01 b, 2), (b - 1) / 3).
        exaggeration: What P is multiplied by, 1 for plain t-SNE (4).
        posterior: "exact", or the papers' "sampled", q(c|x) of one draw.
        assign: What labels are by: "embedding", the map, or "mixture".
        adversarial: Half the side of the box in which rows are attacked in training, in units of the prepared rows (0).
        pretrain_epochs: Passes over the rows in which encoder and decoder learn to reconstruct (50). Batches are halved
            down to 32 rows until there are 1,000 steps, but not by a preset.
        epochs: Passes over the rows in training (300, the papers').
        batch_size: Rows of a batch (800, LPVDN's); in a process group those of all processes.
        lr: Adam's rate, times 0.95 every ten epochs (2e-3, the papers').
        device: Where to work; None is cuda if present.
        random_state: An integer makes all the same bits on the same device.
        n_jobs: Threads of a call; None leaves torch's, -1 is all.
        verbose: Whether to show a bar for each phase.
        callbacks: Objects with on_epoch_end(estimator, epoch, logs), which ends the phase if it returns True.
        warmup: Part of `epochs` over which the weight of the clustering rises from 0 to 1 (1.0; without, components
            collapse).
        denoising: Standard deviation of the noise on pretraining's input, in units of the root of the columns' mean
            variance (1.0).
        start: Where the mixture comes from: "map" trains t on the latent means and takes KMeans of it, "gmm" fits a
            diagonal Gaussian mixture ("map").
        preset: "lpvdn" or "vade" reproduce the papers' codes: sampled posterior, no warm-up, GMM start, an untouched
            log-variance head. An argument that contradicts it is an error.

    Attributes:
        labels_: The cluster [N] of each training row, in their order, int32; absent for streams.
        cluster_centers_: Centres [K, D], in the space of `assign`.
        means_, covariances_, weights_: The mixture: [K, D], variances [K, D], [K].
        n_features_in_, n_iter_: Features of a row; finished epochs of training.
        module_: The networks, an `nn.Module`.
        history_: A dictionary per epoch: phase, terms of the loss in nats per row, lr, cluster_weight, occupancy,
            gradient_norm, seconds.
        diagnostics_: occupancy [K] by the mixture, entropy (mean of q(c|x), nats), collapse (components with less than
            0.1 / K of the rows), pi, effective_clusters (exp of the occupancy's entropy), active_dims, agreement
            (adjusted Rand index of mixture and map; None without a map), nonfinite_steps.

    Raises:
        ValueError: By `fit`: an argument breaks a rule or contradicts another, or X has too few rows, NaN, or values
            outside the range of its reconstruction.
        TypeError: By `fit`: an argument or X is of another type.
        FloatingPointError: By `fit`: ten steps in a row, or the latent means in the end, were not finite.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from vade_robust import RobustVaDE
        >>> X = load_digits().data / 16
        >>> model = RobustVaDE(10, hidden=(32,), pretrain_epochs=1, epochs=1, random_state=0).fit(X)
        >>> (model.predict(X) == model.labels_).all()
        np.True_
        >>> model.predict_proba(X).shape, model.transform(X).shape
        ((1797, 10), (1797, 10))

    References:
        Jiang et al., "Variational Deep Embedding", IJCAI 2017. "Learning Robust Representation for Clustering through
        Locality Preserving Variational Discriminative Network", arXiv 2012.13489.
    """

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
        tags.classifier_tags = ClassifierTags(multi_class=True)  # scikit-learn's check of predict_proba reads it
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.module_.n_latent

    def fit(self, X: Any, y: object = None, *, resume: str | os.PathLike[str] | None = None) -> Self:
        """Trains on the rows of X from the start, or goes on with a checkpoint.

        Args:
            X: Rows (N, P) or images: an array, a data frame, a scipy sparse matrix (dense for a batch at a time), a
                tensor, a re-iterable DataLoader (of tuples the first item), or a Hugging Face Dataset with one column.
                Bytes are taken as pixels and divided by 255, unless all are 0 and 1. A loader decides on its batches;
                results are in the order of its dataset, however it shuffles. Where a sampler leaves rows out, and for
                streams, they are in the order in which the rows come, and there is no `labels_`.
            y: Ignored.
            resume: A file or folder that `callbacks.Checkpoint` wrote; the result is bit for bit that of a fit that was
                never interrupted.

        Returns:
            The estimator; as it was before if anything is raised.
        """
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
        """Trains for one epoch on the rows of X, the first time after pretraining on them; memory stays flat.

        Each call is an epoch of the schedule. Centres are those of at most 10,000 of all rows that were seen, a uniform
        sample; `labels_` are of this call's rows, `diagnostics_` of the sample.

        Args:
            X: As in `fit`; later calls take any number of rows.
            y: Ignored.

        Returns:
            The estimator; as it was before if anything is raised.
        """
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
        """Trains on X and returns its labels [N].

        Args:
            X: As in `fit`.
            y: Ignored.
            **params: Passed to `fit`.
        """
        self.fit(X, **params)
        if isinstance(X, Tensor):
            return torch.from_numpy(self.labels_).to(X.device)
        return self.labels_ if hasattr(self, "labels_") else self.predict(X)

    def predict(self, X: Any, *, assign: str | None = None) -> Any:
        """The cluster of each row, int32 [N]; of the training rows, `labels_`.

        Args:
            X: As in `fit`.
            assign: "embedding" or "mixture"; None is that of the fit.
        """
        return self._answer(X, lambda blocks: blocks.labels(self._assign(assign)))

    def predict_proba(self, X: Any, *, assign: str | None = None) -> Any:
        """Membership of each row in each cluster [N, K], of rows that sum to 1; its argmax is what `predict` gives.

        By the mixture softmax(a); on the map 1 / (1 + |t(mu) - k_c|^2), normalised.

        Args:
            X: As in `fit`.
            assign: "embedding" or "mixture"; None is that of the fit.
        """
        return self._answer(X, lambda blocks: blocks.memberships(self._assign(assign)))

    def transform(self, X: Any, *, space: str | None = None) -> Any:
        """The rows on the map or in the latent space [N, D].

        Args:
            X: As in `fit`.
            space: "embedding", t(mu), or "latent", mu; None is that of `cluster_centers_`.
        """
        return self._answer(X, lambda blocks: blocks.latent() if self._space(space) == "latent" else blocks.embedding())

    def score_samples(self, X: Any, *, n_samples: int = 16) -> Any:
        """The importance-weighted lower bound on each row's log-likelihood [N], in nats and the user's units.

        Args:
            X: As in `fit`.
            n_samples: Draws per row (16), the same noise for every row and call; more are tighter.
        """
        _validation.count("n_samples", n_samples)
        return self._answer(X, lambda blocks: blocks.score_samples(n_samples))

    def score(self, X: Any, y: object = None) -> float:
        """The mean of `score_samples` over the rows.

        Args:
            X: As in `fit`.
            y: Ignored.
        """
        return float(self.score_samples(X).mean())

    def reconstruct(self, X: Any) -> Any:
        """The rows as they are decoded from the means of their latents, in the shape and units of X.

        Args:
            X: As in `fit`.
        """
        return self._answer(X, lambda blocks: blocks.reconstruct())

    def sample(self, n: int = 1, *, cluster: int | None = None) -> tuple[Any, Any]:
        """New rows (n, ...), decoded means of draws from the mixture, and the components [n] that these come from.

        Args:
            n: How many (1).
            cluster: The component to draw from; None draws it by `weights_`.

        Raises:
            ValueError: `n` or `cluster` is out of range.
        """
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

        with undisturbed():
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
        training.check_finite(mu)
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
        """The threads of a call, and torch as it comes."""
        with undisturbed():
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
    """Clusters rows by variational deep embedding, with the exact posterior and a start that does not collapse.

    The loss is L_rec + w_e L_cluster of `RobustVaDE`, without discriminator and map; labels are by the mixture.

    Args:
        n_clusters: Clusters K (8, as scikit-learn's KMeans).
        n_latent: Dimensions D of the latent space and of the map (10, the papers').
        hidden: Widths of the encoder's layers, mirrored in the decoder (500, 500, 2000, the papers').
        encoder: "mlp"; "conv" for images (N, H, W) or (N, C, H, W) of at least 8 x 8; or a module (b, ...) -> (b, H),
            which is copied and given heads and a perceptron as its decoder.
        reconstruction: "bernoulli" for rows in [0, 1] (bytes are divided by 255), "gaussian" for all others, which are
            centred by column and divided by one scalar; "auto" decides by type and range.
        posterior: "exact", or the paper's "sampled", q(c|x) of one draw.
        assign: "mixture", the only one without a map.
        pretrain_epochs: Passes over the rows in which encoder and decoder learn to reconstruct (50). Batches are halved
            down to 32 rows until there are 1,000 steps.
        epochs: Passes over the rows in training (300).
        batch_size: Rows of a batch (800, LPVDN's); in a process group those of all processes.
        lr: Adam's rate, times 0.95 every ten epochs (2e-3, the papers').
        device: Where to work; None is cuda if present.
        random_state: An integer makes all the same bits on the same device.
        n_jobs: Threads of a call; None leaves torch's, -1 is all.
        verbose: Whether to show a bar for each phase.
        callbacks: Objects with on_epoch_end(estimator, epoch, logs), which ends the phase if it returns True.
        warmup: Part of `epochs` over which the weight of the clustering rises from 0 to 1 (1.0; without, components
            collapse).
        denoising: Standard deviation of the noise on pretraining's input, in units of the root of the columns' mean
            variance (1.0).
        start: Where the mixture comes from: "map" trains a map on the latent means and takes KMeans of it, "gmm" fits a
            diagonal Gaussian mixture ("map").

    Attributes:
        labels_: The cluster [N] of each training row, in their order, int32; absent for streams.
        cluster_centers_: Centres [K, D], the mixture's means.
        means_, covariances_, weights_: The mixture: [K, D], variances [K, D], [K].
        n_features_in_, n_iter_: Features of a row; finished epochs of training.
        module_: The networks, an `nn.Module`.
        history_: A dictionary per epoch: phase, terms of the loss in nats per row, lr, cluster_weight, occupancy,
            gradient_norm, seconds.
        diagnostics_: occupancy [K] by the mixture, entropy (mean of q(c|x), nats), collapse (components with less than
            0.1 / K of the rows), pi, effective_clusters (exp of the occupancy's entropy), active_dims, agreement
            (adjusted Rand index of mixture and map; None here), nonfinite_steps.

    Raises:
        ValueError, TypeError, FloatingPointError: As `RobustVaDE`.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from vade_robust import VaDE
        >>> X = load_digits().data / 16
        >>> model = VaDE(10, hidden=(32,), pretrain_epochs=1, epochs=1, random_state=0).fit(X)
        >>> rows, labels = model.sample(5)
        >>> rows.shape
        (5, 64)

    Reference:
        Jiang et al., "Variational Deep Embedding", IJCAI 2017.
    """

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
