"""The page, made of gradio's components."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio as gr

from piip.app.served import Settings
from piip.app.service import Service

SCALES = (0.25, 2.0, 0.125)  # lowest, highest, step
TILES = (256, 512, 1024)  # sides, in pixels
TITLE = "piip: parameter-inverted image pyramids"
INTRODUCTION = (
    f"# {TITLE}\nOne image at several resolutions, each seen by its own network: the higher the resolution, the "
    "smaller the network. Images stay on the machine that runs this page."
)
MODEL_QUEUE = "model"  # everything that uses a model waits here, in order
Result = TypeVar("Result")


def _path_of(payload: Any) -> str | None:
    """Return the path of an uploaded file."""
    return None if payload is None else payload.path


class Inputs(NamedTuple):
    """What a user sets, in the order of the arguments of a request."""

    model: gr.Dropdown
    image: gr.Image
    scale: gr.Slider
    threshold: gr.Slider
    tile: gr.Dropdown


class Outputs(NamedTuple):
    """What a prediction shows, in the order of its values."""

    status: gr.Textbox
    drawn: gr.Image
    legend: gr.Image
    image_file: gr.DownloadButton
    json_file: gr.DownloadButton
    views: gr.Gallery
    cost: gr.HTML


def build_page(service: Service) -> gr.Blocks:
    """Return the page.

    Args:
        service: Answers its requests.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                inputs = _inputs(service)
                button = gr.Button("Predict", variant="primary", elem_id="predict")
                cost = gr.HTML(service.cost(next(iter(service.models)), None, Settings()), elem_id="cost")
            with gr.Column():
                outputs = _outputs(cost)
        if service.samples:
            samples = [list(sample) for sample in service.samples]
            label = "Sample images, with their model"
            gr.Examples(samples, [inputs.image, inputs.model], label=label, visible_columns=[0])
        _connect(service, inputs, button, outputs)
    page.queue(max_size=service.limits.waiting, api_open=False)
    return page


def _inputs(service: Service) -> Inputs:
    names = list(service.models)
    first = service.models[names[0]]
    sources: list[Any] = ["upload", "webcam", "clipboard"]
    image = gr.Image(type="filepath", label="Image", sources=sources, elem_id="image", height=360)
    image.preprocess = _path_of  # gradio would open the image before its size is checked
    model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
    low, high, step = SCALES
    label = "Resolution, relative to the model's own"
    scale = gr.Slider(low, high, value=1.0, step=step, label=label, elem_id="scale")
    threshold = gr.Slider(
        0, 1, value=0.5, step=0.05, label="Score threshold", visible=first.has_threshold, elem_id="threshold"
    )
    sides = [("whole image", 0), *((f"tiles of {side} pixels", side) for side in TILES)]
    tile = gr.Dropdown(sides, value=0, label="Tiles, for large images", visible=first.has_tiles, elem_id="tile")
    return Inputs(model, image, scale, threshold, tile)


def _outputs(cost: gr.HTML) -> Outputs:
    status = gr.Textbox(label="Result", elem_id="status", interactive=False)
    drawn = gr.Image(label="Prediction", elem_id="drawn", interactive=False, height=360, format="png", buttons=[])
    legend = gr.Image(label="Classes", visible=False, interactive=False, height=90, buttons=[])
    with gr.Row():
        image_file = gr.DownloadButton("Download image", interactive=False, elem_id="download-image")
        json_file = gr.DownloadButton("Download JSON", interactive=False, elem_id="download-json")
    label = "What each branch sees"
    views = gr.Gallery(label=label, columns=3, height=280, object_fit="contain", buttons=[], elem_id="views")
    return Outputs(status, drawn, legend, image_file, json_file, views, cost)


def _connect(service: Service, inputs: Inputs, button: gr.Button, outputs: Outputs) -> None:
    """Let the components call the service; requests that use a model are served one at a time."""

    def predict(*values: Any) -> list[Any]:
        return _predicted(service, *values)

    def count(*values: Any) -> str:
        return _guarded(lambda: service.cost(values[0], values[1], _settings(*values[2:])), lambda error: error)

    def show_options(name: str) -> list[Any]:
        served = service.models[name]
        return [gr.update(visible=served.has_threshold), gr.update(visible=served.has_tiles)]

    queued: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": MODEL_QUEUE, "api_visibility": "private"}
    button.click(predict, list(inputs), list(outputs), **queued)
    changes = [inputs.model.change, inputs.image.change, inputs.scale.change, inputs.tile.change]
    live: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on(changes, count, list(inputs), outputs.cost, **live, **queued)
    inputs.model.change(show_options, inputs.model, [inputs.threshold, inputs.tile], api_visibility="private")


def _settings(scale: float, threshold: float, tile: int) -> Settings:
    """Return the settings; values come from strangers, not only from the sliders."""
    low, high, _ = SCALES
    if not low <= scale <= high:
        raise ValueError(f"The resolution is {scale:g}, expected {low:g} to {high:g}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"The score threshold is {threshold:g}, expected 0 to 1.")
    return Settings(float(scale), int(tile), float(threshold))


def _predicted(service: Service, model: str, image: str | None, *values: Any) -> list[Any]:
    """Return new values for the outputs: the answer, or one line that says what is wrong."""

    def show() -> list[Any]:
        answer = service.predict(model, image, _settings(*values))
        return [
            answer.text,
            answer.drawn,
            gr.update(value=answer.legend, visible=answer.legend is not None),
            _download(answer.image_file),
            _download(answer.json_file),
            list(answer.views),
            answer.cost,
        ]

    nothing = [gr.update(value=None), gr.update(value=None, visible=False), _download(None), _download(None)]
    return _guarded(show, lambda error: [error, *nothing, [], gr.update()])


def _download(path: Path | None) -> Any:
    return gr.update(value=None if path is None else str(path), interactive=path is not None)


def _guarded(run: Callable[[], Result], refuse: Callable[[str], Result]) -> Result:
    """Return a result, or for errors of users what `refuse` makes of one line."""
    try:
        return run()
    except ValueError as error:
        return refuse(f"Error: {' '.join(str(error).split())}")
