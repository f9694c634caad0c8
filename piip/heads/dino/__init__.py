"""DINO (arXiv 2203.03605) with the rules of the released detectors: boxes without anchors and without NMS.

`head` puts the parts together: `neck` (channel mapper), `transformer`, `attention`, `selection` (two stages),
`denoising`, `matching` and `losses`; `tokens` and `boxes` are what they share.
"""
