"""Bulk scoring and training on a GPU with PyTorch and Triton: everything in here needs `cws-multidomain[gpu]`."""
