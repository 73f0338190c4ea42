"""Decoding on the CPU: a few tokens through all of a model's blocks in one call of the kernels.

A step of one token spends most of its time between the linear layers, in Python and in small operations.
`install` puts a short way in front of the forward of a decoder that is built as Llama's (Mistral, Qwen2,
Qwen3 and others are): it is taken for a step that is usual in everything, and the model's own code does all
else. What modules are called says only that it may be such a decoder; whether it is one, the first step
tells, which both ways compute and whose results are compared block by block.
"""

from mixllm.decoding.way import install

__all__ = ["install"]
