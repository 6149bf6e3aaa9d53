"""``manylora vllm-serve``: a server that is started as vLLM's is."""
