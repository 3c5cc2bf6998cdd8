"""What concerns this process: signals, threads, random numbers, libraries that need care as they load."""
