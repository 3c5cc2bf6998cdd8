"""Plan a build: the steps, each with its key, and whether it is cached or why it must run."""
