"""What is found out about a model before it is trusted."""
