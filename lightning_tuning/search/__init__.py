"""A search for hyperparameters, from coarse to fine; its samplers and storages are Optuna's.

It needs ``pip install "lightning-tuning[search]"``; nothing of it is imported before it is used.
"""

from lightning_tuning.functional.search.ranges import Choice, FloatRange, IntRange
from lightning_tuning.functional.search.search_result import SearchResult, StageResult, TrialRecord
from lightning_tuning.search.batch_sizes import BatchSizeResult, BatchSizeTime, batch_sizes
from lightning_tuning.search.coarse_to_fine import coarse_to_fine
from lightning_tuning.search.stage import Stage

__all__ = [
    "BatchSizeResult",
    "BatchSizeTime",
    "Choice",
    "FloatRange",
    "IntRange",
    "SearchResult",
    "Stage",
    "StageResult",
    "TrialRecord",
    "batch_sizes",
    "coarse_to_fine",
]
