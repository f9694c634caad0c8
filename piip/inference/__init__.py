"""Prediction with saved models: classes, detections or semantic masks of images.

`predictor` is the public class; `dense_predictor` is shared by detectors and segmentors; `predictions` are the results;
`tiling`, `sliding_window` and `tta` combine several predictions of an image; `compact_masks` stores masks compactly;
`writer` writes results to disk.
"""
