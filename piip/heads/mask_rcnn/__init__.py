"""Mask R-CNN (arXiv 1703.06870) with the rules of the released detectors: boxes and masks of instances.

`head` puts the parts together: `fpn`, `rpn` (region proposals), `roi` (class, box and mask of regions), `masks`
(targets and pasting), `anchors`, `assign`, and `tta` (test-time augmentation).
"""
