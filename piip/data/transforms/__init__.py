"""Transforms of images and targets between disk and model.

`classification` is for image folders, `dense` for boxes and masks; `geometry` resizes, crops and flips both together,
`photometric` changes colours, `official_resize` resizes as the released models did.
"""
