"""Hold the backends of ExecuTorch, one plugin each. ../contract.py defines what a plugin provides."""
