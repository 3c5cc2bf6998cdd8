"""What ExecuTorch can hand a model to: one plugin each. ../contract.py says what a plugin defines."""
