"""The method: chains, inter-layer loss, prediction, quantization. Pure functions on tensors; no files, no toolkit."""
