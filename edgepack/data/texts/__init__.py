"""Texts: their tokenizer, and what all text data sets share."""
