"""Lightning modules: one task a file, steps and metrics only."""
