"""Models for other runtimes: what is exported, in which formats, and whether it computes the same."""
