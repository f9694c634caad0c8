"""Task heads: logits, tokens, boxes, masks or semantic masks from the maps of a backbone.

`base` is what every dense head offers (`DenseHead`); `classification`, `projector` and `upernet` are one file each,
`mask_rcnn` and `dino` a package each; `boxes` holds what detectors share.

Heads take numbers; they import `structures`, `layers` and `ops`, never backbones or models. A new head is a file here
and one line in the table of `piip/build.py`.
"""
