"""Evaluation of saved models on labelled data: `classification` and `dense`, with `metrics` and `report`.

Imports `inference` and `data`. A new metric is a file in `metrics`.
"""
