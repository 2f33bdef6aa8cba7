"""A post-LN character Transformer at learning rates that Adam does not survive without a warm-up.

    wget https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
    python char_transformer.py --data input.txt

Six layers of width 64 and 250 steps at a constant learning rate: ten seconds per run on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _experiment import arguments, evaluating, experiment, hub, optimizer_for, parse, positive, read_text
from _report import Measure, draw_curves, draw_rates, save, verdicts
from matplotlib.figure import Figure
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONTEXT, BATCH, WARMUP = 32, 16, 100
LOSS = Measure("val_loss", "validation loss (nats per character)", higher=False)


def load(data: str | None) -> str:
    """A text file, plain or .xz; a data set of the hub, whose texts are joined; None: the manual within Python."""
    if data is None:  # --smoke
        from pydoc_data.topics import topics

        return "".join(topics.values())[:200_000]
    if Path(data).is_file():
        return read_text(Path(data))
    splits = hub(data)
    order = [split for split in ("train", "validation", "test") if split in splits] or list(splits)
    column = next(name for name, feature in splits[order[0]].features.items() if feature.dtype == "string")
    return "\n".join(text for split in order for text in splits[split][column])


class CharTransformer(nn.Module):
    """Next-character logits. The layer norm comes after each sum, as in 2017: this is what needs a warm-up."""

    def __init__(self, vocabulary: int, width: int = 64, layers: int = 6, heads: int = 4, ffn: int = 256) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(CONTEXT, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, ffn, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, x: Tensor) -> Tensor:
        x = self.characters(x) + self.positions.weight
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=True)
        return self.head(x)  # type: ignore[no-any-return]


def loss_of(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of predicting characters 1..CONTEXT of each window from those before them."""
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(
        __doc__.splitlines()[0],
        data="text file (.txt or .txt.xz), or the name of a Hugging Face data set with a text column",
        optimizers="SGD AdamW AdamW+warmup RAdam AdaMod AdaMod-paper AdaMod-.99 AdaMod-bf16 AdaMod-int8",
        lrs=[1e-3, 3e-3, 1e-2],
    )
    parser.add_argument("--steps", type=positive, default=250, help="batches of 16 windows of 32 characters")
    args = parse(parser, argv, optimizers=["SGD", "AdamW", "AdaMod"], lrs=[1e-2], sgd_lrs=[1e-1], seeds=2, steps=30)

    text = load(args.data)
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[character] for character in text], device=args.device)
    if len(codes) < 20 * (CONTEXT + 1):
        parser.error(f"the text must have at least {20 * (CONTEXT + 1)} characters, got {len(codes)}")
    train, val = codes.split([len(codes) * 9 // 10, len(codes) - len(codes) * 9 // 10])
    val_windows = val[: len(val) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)

    def run(name: str, lr: float, seed: int, tick: Callable[[float], None]) -> dict[str, Any]:
        model = CharTransformer(len(alphabet)).to(args.device)
        optimizer, schedule = optimizer_for(name, model, lr, warmup=WARMUP)
        generator = torch.Generator().manual_seed(seed)
        losses = []
        for _ in range(args.steps):
            starts = torch.randint(len(train) - CONTEXT, (BATCH, 1), generator=generator)
            loss = loss_of(model, train[(starts + torch.arange(CONTEXT + 1)).to(args.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            tick(losses[-1])
        with evaluating(model, optimizer):
            total = sum(loss_of(model, windows, "sum").item() for windows in val_windows.split(256))
        means = torch.tensor(losses).unfold(0, 10, 10).mean(1)
        return {"val_loss": total / (len(val_windows) * CONTEXT), "train_loss": means.tolist()}

    report = experiment("char_transformer", args, run, steps=args.steps, select=LOSS, measures=[LOSS])
    lr = max(args.lrs)
    hottest = [row for row in report["rows"] if row["lr"] == lr and row["optimizer"] != "SGD"]
    report["verdicts_at_highest_lr"] = verdicts(hottest, LOSS)
    print(f"\nAll at the highest learning rate, {lr:g}", *report["verdicts_at_highest_lr"], sep="\n")

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_rates(left, report["rows"], LOSS)
    left.set_title("After the last step, by learning rate")
    draw_curves(right, report["runs"], hottest, "train_loss", range(10, args.steps + 1, 10))
    right.set(title=f"Training at learning rate {lr:g}", xlabel="step", ylabel="training loss (mean of 10 steps)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return save(report, figure, args.out)


if __name__ == "__main__":
    main()
