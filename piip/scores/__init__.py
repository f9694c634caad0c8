"""How good predictions are: COCO average precision, intersection over union of classes."""
