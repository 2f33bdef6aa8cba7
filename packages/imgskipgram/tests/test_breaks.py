"""Callbacks, and what is left when a training breaks off: a whole model that goes on."""

from __future__ import annotations

import _thread
import copy
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import numpy as np
import pytest
from lee import BANK, LEE, At, Broken, assert_same, breaks, model

from imgskipgram import ImageSkipGram


def test_callbacks_are_called_in_gensims_order_with_the_vectors_of_the_epoch() -> None:
    calls, seen = [], []

    class Log:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda trained: calls.append((name, len(trained.losses_)))

        def on_epoch_end(self, trained: ImageSkipGram) -> None:
            calls.append(("on_epoch_end", len(trained.losses_)))
            seen.append((trained.wv, trained.wv.vectors.copy(), trained.syn1neg.copy()))

    trained = model(callbacks=[Log()], epochs=2).fit(LEE)
    assert calls == [
        ("on_train_begin", 0),
        ("on_epoch_begin", 0),
        ("on_epoch_end", 1),
        ("on_epoch_begin", 1),
        ("on_epoch_end", 2),
        ("on_train_end", 2),
    ]
    assert trained.wv is seen[1][0]
    assert (seen[0][1] != seen[1][1]).any()
    for wv, vectors, _ in seen:
        np.testing.assert_array_equal(wv.vectors, vectors)
    assert_same(trained, model(epochs=2).fit(LEE))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float64"},
        {"dtype": "bfloat16"},
        {"projection": "free", "deterministic": True},
        {"projection": "fixed", "objective": "margin", "negatives": "batch"},
        {"objective": "infonce", "negatives": "pair"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_what_broke_off_goes_on_to_the_same_bits(
    tmp_path: Any, options: dict[str, Any], epoch: int, suffix: str
) -> None:
    straight = model(**options).fit(LEE, BANK)
    broken = model(**options, callbacks=[At(epoch, breaks)])
    with pytest.raises(Broken):
        broken.fit(LEE, BANK)
    assert len(broken.losses_) == epoch
    broken.save(tmp_path / f"model{suffix}")
    loaded = ImageSkipGram.load(tmp_path / f"model{suffix}")
    assert_same(loaded, broken)
    loaded.train(LEE, BANK)
    assert_same(loaded, straight)
    assert loaded.losses_ == straight.losses_
    broken.callbacks = ()
    broken.train(LEE)
    assert_same(broken, straight)
    assert broken._plan is None


def test_a_model_saved_by_a_callback_goes_on(tmp_path: Any) -> None:
    saves = At(2, lambda trained: trained.save(tmp_path / "model.npz"))
    straight = model(callbacks=[saves]).fit(LEE, BANK)
    loaded = ImageSkipGram.load(tmp_path / "model.npz")
    loaded.train(LEE)
    assert_same(loaded, straight)


def test_what_broke_off_goes_on_with_its_corpus_or_gives_way_to_another_training() -> None:
    broken = model(callbacks=[At(1, breaks)])
    with pytest.raises(Broken):
        broken.fit(LEE)
    broken.callbacks = ()
    message = r"^corpus must be that of the training which was broken off, with 46\d+ words, got 2; give epochs"
    with pytest.raises(ValueError, match=message):
        broken.train(["the fire"])
    assert broken.train(["the fire"], epochs=1)[1] == 2
    assert broken._plan is None
    assert len(broken.losses_) == 2


@pytest.mark.parametrize("name", ["on_train_begin", "on_epoch_begin"])
def test_a_break_before_the_first_epoch_leaves_the_first_vectors(name: str) -> None:
    callback = type("Callback", (), {name: lambda _, trained: breaks(trained)})()
    broken, begun = model(callbacks=[callback]), model()
    begun.build_vocab(LEE)
    with pytest.raises(Broken):
        broken.fit(LEE)
    assert_same(broken, begun)
    broken.callbacks = ()
    broken.train(LEE)
    assert_same(broken, model().fit(LEE))


def test_a_device_that_does_not_know_an_option_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise ValueError("negatives")

    trained = model().fit(LEE, BANK)
    before = dict(vars(trained))
    monkeypatch.setattr("imgskipgram._training.engine", refuses)
    for call in (trained.fit, trained.train):
        with pytest.raises(ValueError, match=r"^negatives$"):
            call(LEE)
    assert all(getattr(trained, name) is value for name, value in before.items())


def test_vectors_that_are_not_finite_leave_the_model_as_it_was() -> None:
    trained = model().fit(LEE, BANK)
    before, wv, losses = copy.deepcopy(trained), trained.wv, trained.losses_
    message = r"^vectors must stay finite, got NaN or infinity for '\w+' after epoch [12] of 2; lower alpha$"
    with pytest.raises(FloatingPointError, match=message):
        trained.train(LEE, epochs=2, start_alpha=1e30)
    assert trained.wv is wv
    assert trained.losses_ is losses
    assert_same(trained, before)
    trained.alpha = 1e30
    with pytest.raises(FloatingPointError, match=message.replace(r"2; ", "3; ").replace("[12]", "[123]")):
        trained.fit(LEE)
    assert_same(trained, before)


CHILD = """
    import signal, sys
    import numpy as np
    from gensim.test.utils import datapath
    from imgskipgram import ImageSkipGram

    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = open(datapath("lee_background.cor")).read().splitlines() * 30
    last = []

    class Log:
        def on_epoch_begin(self, model):
            if model.losses_:
                print("in the second epoch", flush=True)

        def on_epoch_end(self, model):
            last[:] = model.wv.vectors.copy(), model.syn1neg.copy(), list(model.losses_)

    model = ImageSkipGram(workers=2, vector_size=100, epochs=20, callbacks=[Log()])
    try:
        model.fit(lines, progress=True)
    except KeyboardInterrupt:
        assert len(model.losses_) == 1
        assert model.losses_ == last[2]
        assert (model.wv.vectors == last[0]).all()
        assert (model.syn1neg == last[1]).all()
        assert model._plan.done == 1
        print("whole", flush=True)
"""


def test_an_interrupt_without_a_signal_is_heard_too() -> None:
    """As some editors and notebooks interrupt."""

    class Interrupts:
        def on_epoch_begin(self, trained: ImageSkipGram) -> None:
            if len(trained.losses_) == 1:
                threading.Timer(0.1, _thread.interrupt_main).start()

    trained = model(epochs=10**4, callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        trained.fit(LEE)
    assert 1 <= trained._plan.done == len(trained.losses_) < 10**4


def test_an_interrupt_leaves_the_model_of_the_last_epoch() -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the second epoch\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=60)
    assert out == "whole\n", errors
