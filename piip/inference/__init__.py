"""Prediction with saved models: images in, classes, instances or semantic masks out.

`predictor` is the public class, `dense_predictor` what detectors and segmentors share; `predictions` are the results;
`tiling`, `sliding_window` and `tta` look at an image several times; `compact_masks` keeps masks small; `writer` writes
results to disk.
"""
