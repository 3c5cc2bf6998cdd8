"""Exported files, run by their own runtimes where they must run."""
