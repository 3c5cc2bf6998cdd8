"""No backend: ExecuTorch's own kernels, slow ones that run everywhere."""
