"""How long-running work says where it is: stage, block, rate, time left and memory, to a person or to a log.

    with progress.stage("salience: forward", total=30 * 8, blocks=30) as bar:
        for block in blocks:
            for batch in batches:
                ...
                bar.advance()

Stages follow one another; they do not nest.
"""

from mixllm.progress.bars import Bars
from mixllm.progress.lines import JsonLines
from mixllm.progress.stage import Progress, Silent, Stage, Together, stepped

__all__ = ["Bars", "JsonLines", "Progress", "Silent", "Stage", "Together", "stepped"]
