"""Control this process: signals, threads, random numbers, libraries that need care at import."""
