"""Task heads: logits, tokens, boxes, masks or semantic masks from the maps of a backbone.

`base` is the interface of dense heads (`DenseHead`); `classification`, `projector` and `upernet` are one file each,
`mask_rcnn` and `dino` one package each; `boxes` is shared by detectors.

Heads receive numbers; they import `structures`, `layers` and `ops`, never backbones or models. A new head is a file
here and one line in the table of `piip/build/model.py`.
"""
