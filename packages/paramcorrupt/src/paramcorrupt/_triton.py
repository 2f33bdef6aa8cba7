"""The operators in Triton: one launch for all tensors of the same dtypes, the n largest found without a wait."""

from ._triton_random import random_fill_
from ._triton_select import collect, grad_stats, key_histogram, power_sum, select, top_n
from ._triton_weights import apply_dense_, apply_sparse_, ascend_project_, restore_sparse_, xor_bits_

__all__ = [
    "apply_dense_",
    "apply_sparse_",
    "ascend_project_",
    "collect",
    "grad_stats",
    "key_histogram",
    "power_sum",
    "random_fill_",
    "restore_sparse_",
    "select",
    "top_n",
    "xor_bits_",
]
