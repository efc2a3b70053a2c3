"""An engine stand-in: `vllm serve` without a model, a GPU or PyTorch, for tests and demonstrations."""

__version__ = "0.1.0"
