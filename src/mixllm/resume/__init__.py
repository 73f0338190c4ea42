"""What lets a run that was cut go on: whose work a directory holds, who may write in it, and what is done."""

from mixllm.resume.identity import Identity, identify
from mixllm.resume.workspace import MEASURING, SCRATCH, Resume, finished, partial_of, workspace

__all__ = ["MEASURING", "SCRATCH", "Identity", "Resume", "finished", "identify", "partial_of", "workspace"]
