"""Tuning what costs nothing at run time, after rounding: the scales, with the float model as the teacher."""

from mixllm.tuning.tune import tune_scales

__all__ = ["tune_scales"]
