"""Conversion of data sets of other tools to the two layouts that are read here: COCO files and semantic masks.

`convert` chooses the reader and writes the result. `yolo` and `file_per_image` (by supervision) and `other_formats` (by
datumaro) yield images with objects, `coco_files` writes them; `color_masks` turns masks of colours into masks of class
indices. Libraries of the extra `convert` are imported inside the readers only.
"""
