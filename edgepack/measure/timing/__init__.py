"""From fresh processes to figures that can be trusted."""
