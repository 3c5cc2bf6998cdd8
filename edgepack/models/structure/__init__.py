"""How a model is built, and how layers are made smaller without breaking it."""
