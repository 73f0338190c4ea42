"""What a run takes of memory, known from shapes alone, and what that leaves for the states between blocks.

The run and --dry-run ask here, so that the one does what the other said. Each count is of a moment at which
much is alive at once; benchmarks/quantize.py prints what was told beside what was measured.
"""

from mixllm.needs.sizes import Sizes
from mixllm.needs.tuning import tuning_needs
from mixllm.needs.walk import Needs, needs

__all__ = ["Needs", "Sizes", "needs", "tuning_needs"]
