"""The optimizers in the trainers of other libraries, each of which is an extra: `transformers` and `lightning`."""

__all__: list[str] = []
