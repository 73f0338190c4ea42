"""What the plugins of serving engines have in common: vLLM's, and SGLang's, whose layers came from vLLM.

Nothing here imports an engine.
"""
