"""Data sets and data loading; every module is imported on first use, never here."""
