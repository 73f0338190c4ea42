"""Walking any Hugging Face decoder block by block, forward and backward, one block in memory."""

from __future__ import annotations

from mixllm.blocks.block import Block
from mixllm.blocks.decoder import Decoder
from mixllm.blocks.room import ON_DEVICE, Room
from mixllm.blocks.states import States

__all__ = ["ON_DEVICE", "Block", "Decoder", "Room", "States"]
