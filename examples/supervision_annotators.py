"""Detect nuclei with the shipped model and draw them with supervision's annotators."""

import sys

import numpy as np
import supervision as sv
from PIL import Image

import piip
from piip.demo import ASSETS

nuclei = ASSETS.parent / "nuclei"  # your own model: "runs/nuclei/best"
image = Image.open(nuclei / "images" / "ihc.png").convert("RGB")
prediction = piip.Predictor(nuclei / "model").predict(image)[0]

detections = prediction.to_supervision()
detections = detections[detections.confidence >= 0.5]
print(len(detections), "nuclei,", sorted({*detections["class_name"].tolist()}))

drawn = np.array(image)
for annotator in (sv.MaskAnnotator(), sv.BoxAnnotator(), sv.LabelAnnotator(text_scale=0.3)):
    drawn = annotator.annotate(drawn, detections)
Image.fromarray(drawn).save(sys.argv[1] if len(sys.argv) > 1 else "nuclei.png")
