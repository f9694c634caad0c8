"""Evaluation of saved models on labelled data: `classification` and `dense`, by `metrics`, written up by `report`.

Imports `inference` and `data`. A new metric is a file in `metrics`.
"""
