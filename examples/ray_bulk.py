"""Predict many images on a Ray cluster: folders, or Parquet files with a column of encoded images.

    python examples/ray_bulk.py MODEL FOLDER OUT --actors 4 [--address auto]
    python examples/ray_bulk.py MODEL TABLE.parquet OUT --column image

OUT gets Parquet files with all columns except the images, and "prediction" as JSON.
"""

import argparse
import io
import json
from typing import Any

import ray
from PIL import Image

import piip

parser = argparse.ArgumentParser(description="Predict many images on a Ray cluster.")
parser.add_argument("model")
parser.add_argument("images", help="a folder, or a Parquet file or folder of them that ends with .parquet")
parser.add_argument("out")
parser.add_argument("--column", default="bytes", help='of a Parquet file, often "image"')
parser.add_argument("--actors", type=int, default=1)
parser.add_argument("--address", default="local")
args = parser.parse_args()


class Model:
    def __init__(self) -> None:
        self.predictor = piip.Predictor(args.model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        files = [file["bytes"] if isinstance(file, dict) else file for file in batch.pop(args.column)]
        images = [Image.open(io.BytesIO(file)) for file in files]
        batch["prediction"] = [json.dumps(prediction.to_dict()) for prediction in self.predictor.predict(images)]
        return batch


ray.init(address=args.address)
is_table = args.images.endswith(".parquet")
data = ray.data.read_parquet(args.images) if is_table else ray.data.read_binary_files(args.images, include_paths=True)
data.context.execution_options.preserve_order = True
actors = ray.data.ActorPoolStrategy(size=args.actors)
data.map_batches(Model, batch_size=16, compute=actors).write_parquet(args.out)
