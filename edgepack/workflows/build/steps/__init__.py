"""How each kind of step is done: one module a kind, `do(work, step, folder)` gives its outcome."""
