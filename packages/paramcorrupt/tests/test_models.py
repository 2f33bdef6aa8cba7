"""Models, losses and data by references: what is found, and what people are told when it is not."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paramcorrupt import Objective, models, scan
from paramcorrupt._extras import need
from paramcorrupt.objective import as_objective, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
    def forward(self, x):
        return self.two(self.norm(self.one(x)))

def model():
    torch.manual_seed(0)
    return Net().eval()

ready = model()
batches = [(torch.ones(3, 4), torch.tensor([0, 1, 2])), (torch.zeros(2, 4), torch.tensor([0, 1]))]
dataset = torch.utils.data.TensorDataset(torch.arange(20.0).view(5, 4), torch.arange(5) % 3)
number = 3

def needy(x):
    return x

def once():
    return iter(batches)

def words():
    return [{"x": torch.ones(4, 2), "n": torch.tensor(4)}]

def failing():
    raise RuntimeError("out of order")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module in it."""
    (tmp_path / "mine_of_test.py").write_text(MINE)
    (tmp_path / "broken_of_test.py").write_text("import nowhere_of_test\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_of_test")]:
        del sys.modules[name]


# --- module:callable -------------------------------------------------------------------------------------------------


def test_a_model_is_made_by_a_function_or_a_class_or_is_there(here: Path) -> None:
    before = list(sys.path)
    made = models.load("mine_of_test:model")
    assert type(made).__name__ == "Net"
    assert isinstance(models.load("mine_of_test:Net"), nn.Module)
    assert models.load("mine_of_test:ready") is sys.modules["mine_of_test"].ready
    assert isinstance(models.load("mine_of_test:ready.one"), nn.Linear)
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nowhere_of_test:model", ValueError, "needs the module 'nowhere_of_test', which is neither installed nor in"),
        ("torch.nowhere:model", ValueError, "needs the module 'torch.nowhere'"),
        ("mine_of_test:modle", ValueError, r"names 'modle', which is not there: did you mean model\?"),
        ("mine_of_test:number", TypeError, r"must give a torch\.nn\.Module, got int"),
        ("mine_of_test:words", TypeError, r"must give a torch\.nn\.Module, got list"),
        ("mine_of_test:needy", TypeError, "callable without arguments: missing a required argument: 'x'"),
        ("mine_of_test.py:model", ValueError, "needs the module 'mine_of_test.py'"),
        ("a b:c", ValueError, r"must be a reference such as package\.module:callable"),
        ("mine_of_test:", ValueError, "must be a reference"),
        ("weights.safetensors", ValueError, "got weights alone"),
        ("not a model!", ValueError, "must be module:callable, torchvision:NAME"),
        ("", ValueError, "must be module:callable"),
    ],
)
def test_a_reference_to_no_model_is_refused(reference: str, error: type[Exception], message: str, here: Path) -> None:
    with pytest.raises(error, match=message):
        models.load(reference)


def test_what_the_code_of_others_raises_is_not_dressed_up(here: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^out of order$"):
        models.load("mine_of_test:failing")
    with pytest.raises(ModuleNotFoundError, match="nowhere_of_test"):
        models.load("broken_of_test:model")


# --- weights ---------------------------------------------------------------------------------------------------------


def trained() -> dict[str, torch.Tensor]:
    state = models.load("mine_of_test:model").state_dict()
    return {name: torch.full_like(x, i + 1) for i, (name, x) in enumerate(state.items())}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone."])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_are_found_with_and_without_a_common_prefix(prefix: str, name: str, here: Path) -> None:
    state = {f"{prefix}{key}": x for key, x in trained().items() if not key.endswith("num_batches_tracked")}
    if name.endswith(".pt"):
        torch.save({"state_dict": state, "epoch": 7}, name)
    else:
        save_file(state, name)
    found = models.load("mine_of_test:model", name).state_dict()
    for key, x in trained().items():
        assert key.endswith("num_batches_tracked") or torch.equal(found[key], x)


def test_weights_of_half_precision_go_into_a_model_of_single_precision(here: Path) -> None:
    save_file({key: x.bfloat16() for key, x in trained().items()}, "w.safetensors")
    found = models.load("mine_of_test:model", "w.safetensors")
    assert found.one.weight.dtype == torch.float32
    assert (found.one.weight == 1).all()


def test_tied_weights_need_one_of_their_names_only(here: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

    sys.modules["tied_of_test"] = type(sys)("tied_of_test")
    sys.modules["tied_of_test"].Tied = Tied
    save_file({"b.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "b.bias": torch.ones(2)}, "w.safetensors")
    found = models.load("tied_of_test:Tied", "w.safetensors")
    assert found.a.weight is found.b.weight
    assert (found.a.weight == 1).all()


def test_weights_that_do_not_fit_are_refused_and_the_first_misfits_named(here: Path) -> None:
    state = trained()
    model = models.load("mine_of_test:ready")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state["one.weight"] = torch.ones(6, 5)
    del state["two.bias"]
    state["head"] = torch.ones(1)
    save_file(state, "w.safetensors")
    message = (
        r"w\.safetensors does not fit the model: 'one\.weight' has the shape \(6, 5\) instead of \(6, 4\); "
        r"'two\.bias' is missing; 'head' has no place in it; a file that holds more than its weights is to be loaded "
        r"in the model's own module:callable$"
    )
    with pytest.raises(ValueError, match=message):
        models.load("mine_of_test:ready", "w.safetensors")
    save_file({"x": torch.ones(1)}, "x.safetensors")
    with pytest.raises(ValueError, match="and 6 more"):
        models.load("mine_of_test:ready", "x.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


class Harmful:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("harmed",))


def test_a_pickle_that_needs_code_is_refused_unless_it_is_trusted(here: Path) -> None:
    torch.save({"state_dict": trained(), "setting": Harmful()}, "w.pth")
    with pytest.raises(ValueError, match=r"needs the code of .*mkdir to be loaded.*--trust-pickle"):
        models.load("mine_of_test:model", "w.pth")
    assert not (here / "harmed").exists()
    models.load("mine_of_test:model", "w.pth", trust=True)
    assert (here / "harmed").exists()


@pytest.mark.parametrize("old_format", [False, True])
def test_a_damaged_pickle_is_refused_and_named(old_format: bool, here: Path) -> None:
    torch.save(trained(), "w.pt", _use_new_zipfile_serialization=not old_format)
    content = (here / "w.pt").read_bytes()
    for size in (0, 1, 50, len(content) // 2, len(content) - 20):
        (here / "w.pt").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"^w\.pt is damaged, or not a file of torch\.save"):
            models.load("mine_of_test:model", "w.pt")
    (here / "w.pt").write_bytes(b"just some text")
    with pytest.raises(ValueError, match=r"^w\.pt is damaged"):
        models.load("mine_of_test:model", "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a state dict, got list"),
        ({}, "must hold a state dict, got dict"),
        ({"one.weight": 3}, "must hold tensors by name, got int under 'one.weight'"),
        ({1: torch.ones(1)}, "must hold tensors by name"),
        (torch.ones(3), "must hold a state dict, got Tensor"),
    ],
)
def test_a_pickle_without_a_state_dict_is_refused(content: Any, message: str, here: Path) -> None:
    torch.save(content, "w.pt")
    with pytest.raises(ValueError, match=message):
        models.load("mine_of_test:model", "w.pt")
    with pytest.raises(FileNotFoundError, match=r"exists, got nowhere\.pt"):
        models.load("mine_of_test:model", "nowhere.pt")


def test_the_published_weights_of_a_resnet_are_read(data: Path) -> None:
    from paramcorrupt._weights import read_weights, unwrapped

    found = unwrapped(read_weights(data / "weights" / "resnet_cifar10" / "resnet20-12fca82f.th"))
    assert len(found) == 97
    assert found["linear.weight"].shape == (10, 64)
    trainable = [x for name, x in found.items() if "running" not in name]
    assert sum(x.numel() for x in trainable) == 269_722


# --- data and losses -------------------------------------------------------------------------------------------------


def shapes(batches: Any) -> list[int]:
    return [len(x) for x, _ in batches]


def test_data_is_batches_or_a_dataset_of_examples(here: Path) -> None:
    assert shapes(models.data("mine_of_test:batches")) == [3, 2]
    assert shapes(models.data("mine_of_test:batches", limit=4)) == [3, 1]
    assert shapes(models.data("mine_of_test:batches", limit=3)) == [3]
    assert shapes(models.data("mine_of_test:dataset", batch_size=2)) == [2, 2, 1]
    found = models.data("mine_of_test:dataset", limit=3)
    assert shapes(found) == shapes(found) == [3]
    (cut,) = models.data("mine_of_test:words", limit=3)
    assert cut["x"].shape == (3, 2)
    assert cut["n"] == 4


@pytest.mark.parametrize(
    ("reference", "options", "error", "message"),
    [
        ("mine_of_test:batches", {"limit": 0}, ValueError, "limit must be at least 1, got 0"),
        ("mine_of_test:dataset", {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ("mine_of_test:batches", {"batch_size": 8}, ValueError, "batch_size must be left out"),
        ("mine_of_test:batches", {"split": "test"}, ValueError, "split must be left out"),
        ("mine_of_test:once", {"limit": 3}, TypeError, "data must be re-iterable"),
        ("mine_of_test:batch", {}, ValueError, r"did you mean batches\?"),
        ("nowhere", {}, ValueError, "must be module:callable, or a folder that exists, got 'nowhere'"),
    ],
)
def test_a_reference_to_no_data_is_refused(
    reference: str, options: dict[str, Any], error: type[Exception], message: str, here: Path
) -> None:
    with pytest.raises(error, match=message):
        models.data(reference, **options)


def test_a_loss_is_named_or_found(here: Path) -> None:
    assert models.loss("lm") == "lm"
    assert models.loss("auto", nn.Linear(1, 1)) == "cross_entropy"
    assert models.loss("torch.nn.functional:mse_loss") is nn.functional.mse_loss
    assert isinstance(models.loss("torch.nn:MSELoss"), nn.MSELoss)
    with pytest.raises(TypeError, match="must be callable or an Objective, got int"):
        models.loss("mine_of_test:number")


# --- torchvision -----------------------------------------------------------------------------------------------------


def test_a_model_of_torchvision_starts_untrained_or_from_a_file(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="needs paramcorrupt[vision]")
    model = models.load("torchvision:squeezenet1_1:none")
    state = {f"module.{name}": torch.zeros_like(x) for name, x in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    found = models.load("torchvision:squeezenet1_1", tmp_path / "w.pth")  # without fetching others
    assert not any(x.any() for x in found.parameters())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("torchvision:resnet81", r"none of torchvision's: did you mean resnet"),
        ("torchvision:", "must be torchvision:NAME"),
        ("torchvision:resnet18:a:b", "must be torchvision:NAME"),
        ("torchvision:resnet18:BEST", "has no weights 'BEST': it has IMAGENET1K_V1, DEFAULT, none"),
    ],
)
def test_what_torchvision_does_not_have_is_told(reference: str, message: str) -> None:
    pytest.importorskip("torchvision", reason="needs paramcorrupt[vision]")
    with pytest.raises(ValueError, match=message):
        models.load(reference)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a classifier and data sets, all tiny, as `save_pretrained` and `save_to_disk` write them."""
    transformers = pytest.importorskip("transformers", reason="needs paramcorrupt[hf]")
    datasets = pytest.importorskip("datasets", reason="needs paramcorrupt[hf]")
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 11, "pad_token_id": 0}
    small = {"bos_token_id": 1, "eos_token_id": 2, "num_labels": 3}
    config = transformers.GPT2Config(**sizes, **small)
    transformers.GPT2LMHeadModel(config).bfloat16().save_pretrained(folder / "gpt2")
    transformers.GPT2ForSequenceClassification(config).save_pretrained(folder / "classifier")
    rows = [[1, 5, 7, 3], [4, 4], [9, 8, 7, 6, 5], [2, 3, 4]]
    datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(folder / "tokens")
    datasets.Dataset.from_dict({"input_ids": rows, "label": [0, 1, 2, 0]}).save_to_disk(folder / "labelled")
    pairs = {"x": [[float(i), 1.0] for i in range(5)], "label": [0, 1, 2, 0, 1]}
    split = datasets.Dataset.from_dict(pairs)
    datasets.DatasetDict({"train": split, "test": split.select(range(2))}).save_to_disk(folder / "pairs")
    datasets.Dataset.from_dict({"a": [1], "b": [2]}).save_to_disk(folder / "odd")
    return folder


def test_a_folder_of_hugging_face_is_loaded_as_what_it_says_it_is(hub: Path) -> None:
    model = models.load(str(hub / "gpt2"))
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert models.loss("auto", model) == "lm"


def test_a_language_model_is_scanned_on_its_tokens(hub: Path) -> None:
    model = models.load(str(hub / "gpt2")).float()
    data = models.data(str(hub / "tokens"), batch_size=3)
    first, second = data
    assert first["input_ids"].tolist()[1] == [4, 4, 0, 0, 0]
    assert first["attention_mask"].sum(1).tolist() == [4, 2, 5]
    assert first["labels"].tolist()[1] == [4, 4, -100, -100, -100]
    assert second["labels"].tolist() == [[2, 3, 4]]
    found = scan(model, models.loss("auto", model), data, n=10, verify=1, progress=False)
    assert found.facts()["samples"] == 3 + 1 + 4 + 2
    assert found[0].measured == pytest.approx(found[0].predicted, rel=0.5)


def test_a_classifier_is_measured_by_its_labels(hub: Path) -> None:
    model = models.load(str(hub / "classifier"))
    data = models.data(str(hub / "labelled"), batch_size=4)
    found = models.loss("auto", model)
    assert isinstance(found, Objective)
    with torch.no_grad():
        result = evaluate(model, found, data)
        (batch,) = data
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert result.count == 4
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, batch["labels"]).item(), rel=1e-6)
    assert result.accuracy == (logits.argmax(1) == batch["labels"]).float().mean().item()


def test_a_column_beside_labels_makes_pairs_of_the_split(hub: Path) -> None:
    (pair,) = models.data(str(hub / "pairs"))
    assert pair[0].tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert pair[1].tolist() == [0, 1]
    found = models.data(str(hub / "pairs"), split="train", batch_size=2, limit=3)
    assert shapes(found) == shapes(found) == [2, 1]
    assert evaluate(nn.Linear(2, 3), as_objective("cross_entropy"), found).count == 3


def test_texts_are_cut_into_tokens_by_the_tokenizer_of_the_model(hub: Path) -> None:
    tokenizers = need("tokenizers", "hf", "this test")
    transformers = need("transformers", "hf", "this test")
    datasets = need("datasets", "hf", "this test")
    words = {"<unk>": 0, "the": 1, "cat": 2, "sat": 3}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(hub / "gpt2")
    texts = ["the cat sat", "", "  ", "the dog"]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(hub / "texts")
    (batch,) = models.data(str(hub / "texts"), model=str(hub / "gpt2"))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [1, 0, -100]]
    with pytest.raises(ValueError, match="needs a model of Hugging Face for its tokenizer"):
        models.data(str(hub / "texts"))


def test_files_of_data_are_read_without_their_being_saved_by_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs paramcorrupt[hf]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_text('{"x": [1.5], "label": 1}\n{"x": [2.5], "label": 0}\n')
    (pair,) = models.data(str(tmp_path / "rows"))
    assert pair[0].tolist() == [[1.5], [2.5]]


def test_images_become_numbers_from_zero_to_one() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    from paramcorrupt._hub import _stack

    found = _stack([image.new("RGB", (3, 2), (255, 0, 51)), image.new("RGB", (3, 2))])
    assert found.shape == (2, 3, 2, 3)
    assert found[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_what_hugging_face_cannot_give_is_told(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot be loaded from Hugging Face"):
        models.load("nobody/has-this-model-of-test")
    with pytest.raises(FileNotFoundError, match=r"must have a config\.json"):
        models.load(str(tmp_path))
    (tmp_path / "config.json").write_text((hub / "gpt2" / "config.json").read_text())
    with pytest.raises(ValueError, match="cannot be loaded from Hugging Face"):
        models.load(str(tmp_path))
    with pytest.raises(ValueError, match="must be a data set of Hugging Face"):
        models.data(str(hub / "gpt2"))
    with pytest.raises(
        ValueError, match="must have the column input_ids or text, or one column beside label, got a, b"
    ):
        models.data(str(hub / "odd"))
    with pytest.raises(ValueError, match="split must be one of train, test"):
        models.data(str(hub / "pairs"), split="dev")
    with pytest.raises(ValueError, match="split must be left out for data without splits"):
        models.data(str(hub / "odd"), split="test")


def test_weights_of_a_file_replace_those_of_a_folder(hub: Path, tmp_path: Path) -> None:
    state = {name: torch.zeros_like(x) for name, x in models.load(str(hub / "gpt2")).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    found = models.load(str(hub / "gpt2"), tmp_path / "w.pt")
    assert not any(x.any() for x in found.parameters())
    some = {name: x.clone() for name, x in state.items() if name.startswith("transformer.h")}
    save_file(some, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((hub / "gpt2" / "config.json").read_text())
    with pytest.raises(ValueError, match="must have all of its weights, got none for"):
        models.load(str(tmp_path))


def test_an_extra_that_is_missing_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transformers", "datasets", "torchvision"):
        monkeypatch.setitem(sys.modules, module, None)
    for extra, call in (
        ("hf", lambda: models.load("someone/model")),
        ("hf", lambda: models.data(str(hub / "tokens"))),
        ("vision", lambda: models.load("torchvision:resnet18")),
    ):
        with pytest.raises(ImportError, match=rf"paramcorrupt\[{extra}\]"):
            call()
